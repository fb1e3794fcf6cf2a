"""What may be served: Model, ModelVersion and their rules (domain §2). Rules only, no I/O."""

from __future__ import annotations

import re
from datetime import datetime
from enum import Enum
from typing import Any
from urllib.parse import unquote

import msgspec

from controlplane.errors import InvalidChecksum, InvalidModelId, InvalidTaskType, ValidationFailed
from controlplane.registry.source_url import parse_source_url

# The hub's rule for names, per part: no leading or trailing '-' or '.', no '--', no '..'. That is
# what makes '{org}--{repo}' collision-free as a Triton model name.
_PART = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
_SEMVER = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
# Git's own rule for branch and tag names is wider; this keeps what a path or URL can carry.
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
# Neither control characters nor halves of surrogate pairs: SQLite would cut or refuse them.
_TEXT = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]*")

_LONGEST_IDLE = 10**9
SHORT = 255
MEDIUM = 1000
TEXT = 100_000
# One below SHORT: the Triton name is one longer, and a folder's name has at most 255 bytes.
_ID_LENGTH = SHORT - 1


class ModelId(msgspec.Struct, frozen=True, order=True):
    """`{organization}/{repository}`, case-sensitive, at most 254 characters."""

    organization: str
    repository: str

    def __str__(self) -> str:
        return f"{self.organization}/{self.repository}"

    @property
    def triton_name(self) -> str:
        """Name of the model in Triton and of its folder in the model repository."""
        return f"{self.organization}--{self.repository}"

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """Read a model id.

        Raises:
            InvalidModelId: saying which rule the text breaks.
        """
        parts = text.split("/")
        if len(parts) != 2:
            why = "it has no organization" if len(parts) == 1 else "it has more than one slash"
            raise InvalidModelId(text, why)
        if len(text) > _ID_LENGTH:
            raise InvalidModelId(text, f"it is longer than {_ID_LENGTH} characters")
        for part in parts:
            if not _PART.fullmatch(part):
                raise InvalidModelId(
                    text,
                    f"{part!r} must be letters, digits, '-', '_' and '.', "
                    "beginning and ending with a letter, digit or '_'",
                )
            if "--" in part or ".." in part:
                raise InvalidModelId(text, f"{part!r} must not contain '--' or '..'")
        return cls(*parts)

    @classmethod
    def from_any_spelling(cls, name: str) -> ModelId:
        """Read a model id, its URL-encoded form or its Triton name.

        Raises:
            InvalidModelId: as `parse`.
        """
        text = unquote(name)
        if "/" not in text and text.count("--") == 1:
            text = text.replace("--", "/")
        return cls.parse(text)


class TaskType(str, Enum):
    """What a model does (domain §2.7)."""

    TXT2EMBED = "txt2embed"
    TXT2TXT = "txt2txt"
    TXT2IMG = "txt2img"
    IMG2TXT = "img2txt"
    IMG2EMBED = "img2embed"
    IMG2IMG = "img2img"
    AUDIO2TXT = "audio2txt"
    TXT2AUDIO = "txt2audio"
    CLASSIFICATION = "classification"
    OBJECT_DETECTION = "object_detection"
    QUESTION_ANSWERING = "question_answering"
    # Ours, not the domain's: a ready-made Triton model, whose tensors are its own affair.
    CUSTOM = "custom"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, text: str) -> TaskType:
        """Read a task type; case does not matter and '-' reads as '_'.

        Raises:
            InvalidTaskType: listing the supported values.
        """
        try:
            return cls(text.strip().lower().replace("-", "_"))
        except ValueError:
            raise InvalidTaskType(text, [task.value for task in SERVABLE_TASKS]) from None


# Tasks that have a converter and a backend by now, or need none; the others are refused at
# registration rather than at the first request (domain C-02).
SERVABLE_TASKS = (TaskType.TXT2EMBED, TaskType.CUSTOM)


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
# As a version's name it stands for the newest ready one.
LATEST = "latest"
INSTALLING = frozenset({VersionStatus.DOWNLOADING, VersionStatus.EXPORTING})

FRAMEWORKS = ("pytorch", "tensorflow", "jax", "onnx")


class ResourceCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine has to give; memory in MB."""

    memory_mb: int
    gpu_vram_mb: int = 0
    cpu_threads: int = 1
    gpu_count: int = 0


class ResourceRequirements(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What a version needs to run (domain §2.8); memory and disk in MB."""

    memory_mb: int
    gpu_vram_mb: int = 0
    cpu_threads: int = 1
    gpu_count: int | None = None
    min_memory_mb: int | None = None
    disk_space_mb: int | None = None

    def __post_init__(self) -> None:
        if self.gpu_count is None:
            msgspec.structs.force_setattr(self, "gpu_count", 1 if self.gpu_vram_mb > 0 else 0)

    def errors(self, path: str = "resource_requirements") -> dict[str, list[str]]:
        """Broken rules, as a map of field path to messages; empty when valid."""
        rules = {
            "memory_mb": (self.memory_mb > 0, "must be above 0"),
            "gpu_vram_mb": (self.gpu_vram_mb >= 0, "must be 0 or more"),
            "cpu_threads": (self.cpu_threads > 0, "must be above 0"),
            "gpu_count": ((self.gpu_count or 0) >= 0, "must be 0 or more"),
            "min_memory_mb": (
                self.min_memory_mb is None or 0 < self.min_memory_mb <= self.memory_mb,
                "must be above 0 and at most memory_mb",
            ),
            "disk_space_mb": (
                self.disk_space_mb is None or self.disk_space_mb > 0,
                "must be above 0",
            ),
        }
        return {f"{path}.{name}": [text] for name, (holds, text) in rules.items() if not holds}

    def warnings(self) -> list[str]:
        """Values that are allowed but unlikely (domain §2.8)."""
        unlikely = [
            (self.memory_mb > 100_000, "memory_mb is above 100,000"),
            (self.gpu_vram_mb > 80_000, "gpu_vram_mb is above 80,000"),
            (self.cpu_threads > 64, "cpu_threads is above 64"),
            (self.gpu_vram_mb > 0 and not self.gpu_count, "gpu_vram_mb is set but gpu_count is 0"),
        ]
        return [text for holds, text in unlikely if holds]

    def fits_in(self, capacity: ResourceCapacity) -> bool:
        """True when every need is covered by `capacity`."""
        return (
            self.memory_mb <= capacity.memory_mb
            and self.gpu_vram_mb <= capacity.gpu_vram_mb
            and self.cpu_threads <= capacity.cpu_threads
            and (self.gpu_count or 0) <= capacity.gpu_count
        )

    @classmethod
    def estimate(cls, artefact_bytes: int, *, uses_gpu: bool = False) -> ResourceRequirements:
        """Requirements guessed from the artefact's size: 1.5 times it (domain §2.8)."""
        size_mb = max(1, -(-artefact_bytes // 2**20))
        memory = max(1, -(-artefact_bytes * 3 // (2 * 2**20)))
        return cls(
            memory_mb=memory,
            gpu_vram_mb=memory if uses_gpu else 0,
            cpu_threads=4,
            disk_space_mb=size_mb,
        )

    def __str__(self) -> str:
        gpu = f"{self.gpu_vram_mb} MB VRAM" if self.gpu_vram_mb else "CPU-only"
        return f"{self.memory_mb} MB RAM, {gpu}, {self.cpu_threads} threads"


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
    if task_type not in SERVABLE_TASKS:
        raise InvalidTaskType(new.task_type, [task.value for task in SERVABLE_TASKS])
    if new.checksum is not None:
        check_checksum(new.checksum)
    errors: dict[str, list[str]] = {}
    errors |= _version_errors(new.version)
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


def check_version_name(text: str) -> str:
    """The version string itself when it keeps the rules (domain §2.3).

    Raises:
        ValidationFailed: on field `version`.
    """
    errors = _version_errors(text)
    if errors:
        raise ValidationFailed(errors)
    return text


def check_checksum(text: str) -> str:
    """The checksum itself when it is `sha256:` and 64 hexadecimal digits.

    Raises:
        InvalidChecksum: otherwise.
    """
    if not _CHECKSUM.fullmatch(text):
        raise InvalidChecksum(text)
    return text


def version_sort_key(text: str) -> tuple[Any, ...]:
    """Order of versions: names below semantic versions, those as semver.org §11 orders them."""
    match = _SEMVER.fullmatch(text)
    if match is None:
        return (0, text)
    major, minor, patch, pre = match.groups()
    # Identifiers of a pre-release: numbers by value and below words.
    parts = [(0, int(x), "") if x.isdecimal() else (1, 0, x) for x in (pre or "").split(".")]
    return (1, int(major), int(minor), int(patch), pre is None, parts)


def is_semantic(text: str) -> bool:
    """True for a semantic version, with or without a `v` in front."""
    return _SEMVER.fullmatch(text) is not None


def age_order(version: ModelVersion) -> tuple[Any, ...]:
    """Order of a model's versions, oldest first: semantic ones by number and above all others,
    which stand in the order of their registration (a branch or commit tells nothing by its name).
    """
    if is_semantic(version.version):
        return version_sort_key(version.version)
    return (0, version.triton_version)


def _version_errors(text: str) -> dict[str, list[str]]:
    if not 1 <= len(text) <= 100:
        return {"version": ["must be 1 to 100 characters long"]}
    if text == LATEST:
        return {"version": ["'latest' stands for the newest ready version; name a version"]}
    if not _VERSION.fullmatch(text) or ".." in text or text.endswith(("/", ".")) or "//" in text:
        return {
            "version": [
                "must be a semantic version, branch, tag or commit: letters, digits and . _ / + -"
            ]
        }
    return {}


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
