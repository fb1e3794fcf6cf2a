"""What may be served: Model, ModelVersion and their rules (domain §2). Rules only, no I/O."""

from __future__ import annotations

import re
from datetime import datetime
from enum import Enum
from typing import Any

import msgspec

from controlplane.errors import ValidationFailed
from controlplane.registry.engine_choice import EngineChoice
from controlplane.registry.model_form import ModelForm
from controlplane.registry.names import (
    LATEST,
    MEDIUM,
    SHORT,
    TEXT,
    ModelId,
    TaskType,
    check_checksum,
    check_version_name,
    is_semantic,
    version_errors,
    version_sort_key,
)
from controlplane.registry.requirements import ResourceCapacity, ResourceRequirements
from controlplane.registry.source_url import parse_source_url

# What makes up a model is had from here, its names and needs too.
__all__ = [
    "FRAMEWORKS",
    "INSTALLING",
    "LATEST",
    "MEDIUM",
    "SHORT",
    "STATUS_MOVES",
    "TEXT",
    "EngineChoice",
    "Model",
    "ModelChange",
    "ModelId",
    "ModelVersion",
    "NewModel",
    "ResourceCapacity",
    "ResourceRequirements",
    "Servable",
    "TaskType",
    "VersionStatus",
    "age_order",
    "check_change",
    "check_checksum",
    "check_new_model",
    "check_version_name",
    "is_semantic",
    "version_sort_key",
]

# Neither control characters nor halves of surrogate pairs: SQLite would cut or refuse them.
_TEXT = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]*")

_LONGEST_IDLE = 10**9


class VersionStatus(str, Enum):
    """How far a version has come on its way to being servable (domain §2.2, C-65)."""

    REGISTERED = "registered"
    DOWNLOADING = "downloading"
    EXPORTING = "exporting"
    READY = "ready"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


# A ready version that is installed again stays as it is, hence ready -> downloading is not a move.
# ready -> failed is for one whose artefact is gone from the model repository.
STATUS_MOVES: dict[VersionStatus, frozenset[VersionStatus]] = {
    VersionStatus.REGISTERED: frozenset({VersionStatus.DOWNLOADING}),
    VersionStatus.DOWNLOADING: frozenset({VersionStatus.EXPORTING, VersionStatus.FAILED}),
    VersionStatus.EXPORTING: frozenset({VersionStatus.READY, VersionStatus.FAILED}),
    VersionStatus.READY: frozenset({VersionStatus.FAILED}),
    VersionStatus.FAILED: frozenset({VersionStatus.DOWNLOADING, VersionStatus.READY}),
}
INSTALLING = frozenset({VersionStatus.DOWNLOADING, VersionStatus.EXPORTING})

FRAMEWORKS = ("pytorch", "tensorflow", "jax", "onnx")


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model, pinned to a commit and a checksum once its bytes are known.

    Attributes:
        model_id: text form, `{org}/{repo}`.
        version: semantic version, branch, tag or commit, as the user named it.
        revision: the commit the version string stood for when it was installed (hub sources).
        checksum: sha256 over the sorted manifest of source files; set once, then immutable.
        artifact_uri: where the bytes came from, at a fixed revision; set once, then immutable.
        backend, engine: the Triton backend folder and the engine that run the artefact.
        triton_version: the version's folder in the model repository; never used again.
        resource_requirements: declared, or estimated from the artefact.
        measured_memory_mb: what the loaded version really took (PSS, MB); None until measured.
        artefact: the converter's manifest, None until ready.
        trust_remote_code: code of the repository may run while it is converted, where the server's
            settings allow that.
        engine_choice: what the converter was, or is to be, asked for; None measures.
        version_number: optimistic lock, from 1, +1 on every change.
    """

    id: str
    model_id: str
    version: str
    status: VersionStatus
    triton_version: int
    created_at: datetime
    updated_at: datetime
    version_number: int = 1
    revision: str | None = None
    checksum: str | None = None
    artifact_uri: str | None = None
    framework: str = "pytorch"
    framework_version: str | None = None
    backend: str | None = None
    engine: str | None = None
    resource_requirements: ResourceRequirements | None = None
    requirements_declared: bool = False
    measured_memory_mb: float | None = None
    artefact_bytes: int | None = None
    artefact_checksum: str | None = None
    artefact: dict[str, Any] | None = None
    error_message: str | None = None
    metadata: dict[str, Any] = {}
    created_by: str | None = None
    trust_remote_code: bool = False
    engine_choice: EngineChoice | None = None

    @property
    def triton_name(self) -> str:
        return ModelId.parse(self.model_id).triton_name

    @property
    def need_source(self) -> str:
        """Where `need_mb` comes from: measured, declared or estimated."""
        if self.measured_memory_mb is not None:
            return "measured"
        return "declared" if self.requirements_declared else "estimated"

    @property
    def need_mb(self) -> float:
        """Memory to reserve for a load, in MB: measured, else declared, else 1.5 x artefact."""
        if self.measured_memory_mb is not None:
            return self.measured_memory_mb
        if self.resource_requirements is not None:
            return float(self.resource_requirements.memory_mb)
        return float(ResourceRequirements.estimate(self.artefact_bytes or 0).memory_mb)


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalog with its versions; the current one is served by default.

    Attributes:
        source_url: where versions come from instead of the hub (`file:///…`), None = hub.
        pinned: an upgrade is refused; the current version stays until somebody says otherwise.
        keep_loaded: it stays in memory; nothing is evicted for it once there, nor it for others.
        idle_ttl: seconds without use after which it leaves memory; 0 is right after use, below 0
            never, None as the setting `idle_ttl` says.
        version: optimistic lock of the entity, from 1 (domain §1.1); not a model version.
    """

    id: str
    catalog_id: str
    model_id: str
    task_type: TaskType
    current_version: str
    versions: tuple[ModelVersion, ...]
    created_at: datetime
    updated_at: datetime
    version: int = 1
    display_name: str | None = None
    description: str | None = None
    source_url: str | None = None
    config: dict[str, Any] = {}
    custom_params: dict[str, Any] = {}
    pinned: bool = False
    keep_loaded: bool = False
    idle_ttl: float | None = None

    @property
    def current(self) -> ModelVersion:
        return next(v for v in self.versions if v.version == self.current_version)

    @property
    def latest(self) -> ModelVersion | None:
        """The highest version among those that are ready; None when none is."""
        ready = (v for v in self.versions if v.status is VersionStatus.READY)
        return max(ready, key=age_order, default=None)

    def find_version(self, text: str) -> ModelVersion | None:
        """The version of that name, or whose Triton number is written `text`; None if absent.

        `latest` is the newest of those that are ready.
        """
        by_name = next((v for v in self.versions if v.version == text), None)
        if by_name is None and text == LATEST:
            return self.latest
        if by_name is None and text.isdecimal():
            return next((v for v in self.versions if str(v.triton_version) == text), None)
        return by_name


class Servable(msgspec.Struct, frozen=True, kw_only=True):
    """What the lifecycle needs to know of a ready version to load it and route to it.

    Attributes:
        need_source: where `need_mb` comes from, for those who look.
        floating: it was asked for without a version: a switch of the current version may give the
            request to the new one.
        form: its tensors.
    """

    model_id: str
    version: str
    version_id: str
    task_type: TaskType
    triton_name: str
    triton_version: int
    need_mb: float
    need_source: str = "estimated"
    floating: bool = False
    form: ModelForm = ModelForm()

    @property
    def key(self) -> tuple[str, int]:
        """Identity in Triton: (model name, version number)."""
        return (self.triton_name, self.triton_version)


class NewModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a registration says (domain §8.3, both forms united); checked by `check_new_model`.

    Attributes:
        revision, checksum, artifact_uri: when it is known before the download which bytes the
            version stands for (a lock says so): that commit is fetched, and other bytes refused.
        task_type: None is for `registration.py` to find out; a model is stored with one.
    """

    model_id: str
    task_type: str | None = None
    version: str = "main"
    display_name: str | None = None
    description: str | None = None
    source_url: str | None = None
    resource_requirements: ResourceRequirements | None = None
    config: dict[str, Any] = {}
    custom_params: dict[str, Any] = {}
    framework: str = "pytorch"
    framework_version: str | None = None
    metadata: dict[str, Any] = {}
    created_by: str | None = None
    revision: str | None = None
    checksum: str | None = None
    artifact_uri: str | None = None
    keep_loaded: bool = False
    idle_ttl: float | None = None
    trust_remote_code: bool = False
    engine_choice: EngineChoice | None = None


class ModelChange(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of an update; UNSET ones stay as they are, None clears."""

    display_name: str | msgspec.UnsetType | None = msgspec.UNSET
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    config: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    resource_requirements: ResourceRequirements | msgspec.UnsetType = msgspec.UNSET
    keep_loaded: bool | msgspec.UnsetType = msgspec.UNSET
    idle_ttl: float | msgspec.UnsetType | None = msgspec.UNSET


def check_new_model(new: NewModel) -> tuple[ModelId, TaskType]:
    """Check every rule of a registration at once.

    Raises:
        InvalidModelId, InvalidTaskType, InvalidChecksum: for these fields.
        ValidationFailed: for all others, naming each field.
    """
    model_id = ModelId.parse(new.model_id)
    if new.task_type is None:
        raise ValidationFailed.field("task_type", "is required")
    task_type = TaskType.parse(new.task_type)
    if new.checksum is not None:
        check_checksum(new.checksum)
    errors: dict[str, list[str]] = {}
    errors |= version_errors(new.version)
    errors |= _length_errors(display_name=(new.display_name, SHORT))
    errors |= _length_errors(
        description=(new.description, MEDIUM), created_by=(new.created_by, SHORT)
    )
    errors |= _length_errors(framework_version=(new.framework_version, 50))
    errors |= _source_errors(new.source_url)
    if new.framework not in FRAMEWORKS:
        errors["framework"] = [f"must be one of {', '.join(FRAMEWORKS)}"]
    elif new.framework != "pytorch":
        errors["framework"] = ["only pytorch models can be converted so far"]
    if new.resource_requirements is not None:
        errors |= new.resource_requirements.errors()
    errors |= _idle_errors(new.idle_ttl)
    if errors:
        raise ValidationFailed(errors)
    return model_id, task_type


def check_change(change: ModelChange) -> None:
    """Check every rule of an update at once.

    Raises:
        ValidationFailed: naming each field.
    """
    errors: dict[str, list[str]] = {}
    for name, limit in (("display_name", SHORT), ("description", MEDIUM)):
        value = getattr(change, name)
        if isinstance(value, str):
            errors |= _length_errors(**{name: (value, limit)})
    if isinstance(change.resource_requirements, ResourceRequirements):
        errors |= change.resource_requirements.errors()
    if isinstance(change.idle_ttl, float | int):
        errors |= _idle_errors(change.idle_ttl)
    if errors:
        raise ValidationFailed(errors)


def age_order(version: ModelVersion) -> tuple[Any, ...]:
    """Order of a model's versions, oldest first: semantic ones by number and above all others,
    which stand in the order of their registration (a branch or commit tells nothing by its name).
    """
    if is_semantic(version.version):
        return version_sort_key(version.version)
    return (0, version.triton_version)


def _source_errors(source_url: str | None) -> dict[str, list[str]]:
    """Where versions come from; a relative path would depend on where the server was started."""
    if source_url is None:
        return {}
    found = parse_source_url(source_url)
    return {"source_url": [found]} if isinstance(found, str) else {}


def _idle_errors(idle_ttl: float | None) -> dict[str, list[str]]:
    if idle_ttl is None or abs(idle_ttl) <= _LONGEST_IDLE:  # False for NaN
        return {}
    return {"idle_ttl": ["must be seconds, at most 1,000,000,000; 0 is at once, below 0 never"]}


def _length_errors(**fields: tuple[str | None, int]) -> dict[str, list[str]]:
    errors = {}
    for name, (value, limit) in fields.items():
        if value is None:
            continue
        if not (value.strip() and len(value) <= limit):
            errors[name] = [f"must be 1 to {limit} characters and not blank"]
        elif not _TEXT.fullmatch(value):
            errors[name] = ["must not contain control characters other than line breaks and tabs"]
    return errors
