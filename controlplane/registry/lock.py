"""Locks: which bytes of which models a machine is to serve (domain §2.4, 2.5). Rules only, no I/O.

A lock is a snapshot of the catalog: for each model one version, its commit, the digests of its
files and who converted it. `lock_plan.py` puts it beside the catalog.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from controlplane.errors import ModelMoraError, ValidationFailed
from controlplane.registry.files import SourceFile, is_plain_path, source_checksum
from controlplane.registry.model import (
    MEDIUM,
    SHORT,
    Model,
    ModelId,
    ModelVersion,
    ResourceRequirements,
    TaskType,
    check_checksum,
    check_version_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOCK_VERSION = "1.0"
# The last segment of an address; `import` and the like are addresses themselves.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
RESERVED_NAMES = frozenset({"import", "compare", "verify", "activities"})
_ENVIRONMENT_LENGTH = 50
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_SCHEMES = ("https://", "s3://", "file://")


class ValidationResult(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of checking an entity (domain §1.3); warnings never make it invalid.

    Attributes:
        errors: dotted field path to messages.
        warnings: what is allowed but should be looked at.
    """

    errors: dict[str, list[str]] = {}
    warnings: list[str] = []

    @property
    def valid(self) -> bool:
        return not self.errors


class Converter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who made an artefact: the versions that decide about its bytes."""

    modelmora: str | None = None
    torch: str | None = None
    transformers: str | None = None
    onnx: str | None = None
    engine: str | None = None
    precision: str | None = None
    opset: int | None = None
    exporter: str | None = None


class LockedModelEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of a lock: an immutable snapshot of a version.

    Attributes:
        revision: the commit on the hub; None for other sources.
        checksum: of all source files together, see `source_checksum`.
        files: the source files by path; empty when nobody recorded them.
        source_url: where the version came from instead of the hub.
        artefact_checksum: of the converted files; equal on another machine only where the
            converter makes equal bytes there.
        trust_remote_code: `files` has code of the repository, which ran while it was converted.
    """

    model_id: str
    version: str
    checksum: str
    artifact_uri: str
    task_type: str
    resource_requirements: ResourceRequirements
    revision: str | None = None
    source_url: str | None = None
    files: tuple[SourceFile, ...] = ()
    converter: Converter | None = None
    artefact_checksum: str | None = None
    trust_remote_code: bool = False


class LockDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a lock says: the content of `modelmora.lock`.

    Attributes:
        generated_at: when the content last changed; writing it again does not change it.
        locked_models: sorted by model id.
    """

    lock_version: str = LOCK_VERSION
    generated_at: Annotated[datetime, msgspec.Meta(tz=True)]
    name: str
    environment: str
    description: str | None = None
    locked_models: tuple[LockedModelEntry, ...] = ()

    def says_the_same(self, other: LockDocument) -> bool:
        """True when the two differ in their time at most."""
        return msgspec.structs.replace(other, generated_at=self.generated_at) == self

    def entry(self, model_id: str) -> LockedModelEntry | None:
        """The entry of that model, if any."""
        return next((entry for entry in self.locked_models if entry.model_id == model_id), None)


class ModelLock(msgspec.Struct, frozen=True, kw_only=True):
    """A lock that is kept under its name.

    Attributes:
        active: an active lock protects its models from deletion (domain C-46).
        version: optimistic lock, from 1, +1 on every change; each change of the document is kept
            under the version it made.
    """

    id: str
    document: LockDocument
    created_at: datetime
    updated_at: datetime
    active: bool = True
    version: int = 1
    created_by: str | None = None

    @property
    def name(self) -> str:
        return self.document.name


# -- checking ----------------------------------------------------------------------------------


def validate(document: LockDocument) -> ValidationResult:
    """Check every rule of a lock and of its entries at once."""
    errors = _name_errors(document.name)
    warnings: list[str] = []
    environment, description = document.environment, document.description or ""
    if not (1 <= len(environment) <= _ENVIRONMENT_LENGTH and environment.isprintable()):
        errors["environment"] = [f"must be 1 to {_ENVIRONMENT_LENGTH} printable characters"]
    if len(description) > MEDIUM or not "".join(description.split()).isprintable():
        errors["description"] = [f"must be at most {MEDIUM} printable characters"]
    seen: set[str] = set()
    for index, entry in enumerate(document.locked_models):
        path = f"locked_models[{index}]"
        if entry.model_id in seen:
            errors[f"{path}.model_id"] = [
                f"{entry.model_id} is there twice; a lock holds one version of a model: keep one"
            ]
        seen.add(entry.model_id)
        for name, messages in entry_errors(entry).items():
            errors.setdefault(f"{path}.{name}", []).extend(messages)
        warnings += [f"{entry.model_id}: {text}" for text in _entry_warnings(entry)]
    return ValidationResult(errors=errors, warnings=warnings)


def _name_errors(name: str) -> dict[str, list[str]]:
    if not (len(name) <= SHORT and _NAME.fullmatch(name)):
        return {"name": [f"must be 1 to {SHORT} letters, digits, '.', '_' or '-'"]}
    if name in RESERVED_NAMES:
        return {"name": [f"{name} is reserved; choose another"]}
    return {}


def entry_errors(entry: LockedModelEntry) -> dict[str, list[str]]:
    """Broken rules of one entry, by field."""
    errors: dict[str, list[str]] = {}
    checks: dict[str, Callable[[], object]] = {
        "model_id": lambda: ModelId.parse(entry.model_id),
        "version": lambda: check_version_name(entry.version),
        "checksum": lambda: check_checksum(entry.checksum),
        # by its form: a lock may be read where the plugin of a task is not installed
        "task_type": lambda: TaskType.named(entry.task_type),
    }
    if entry.artefact_checksum is not None:
        text = entry.artefact_checksum
        checks["artefact_checksum"] = lambda: check_checksum(text)
    for name, check in checks.items():
        try:
            check()
        except ModelMoraError as error:
            errors[name] = _messages(error)
    if entry.revision is not None and not _REVISION.fullmatch(entry.revision):
        errors["revision"] = ["must be a commit: 40 lowercase hexadecimal digits"]
    if not (entry.artifact_uri.startswith(_SCHEMES) and entry.artifact_uri.isprintable()):
        errors["artifact_uri"] = [f"must be a URL that begins with one of {', '.join(_SCHEMES)}"]
    if entry.source_url is not None and not (entry.source_url and entry.source_url.isprintable()):
        errors["source_url"] = ["must be a URL or a directory, or left out for the hub"]
    errors |= entry.resource_requirements.errors()
    if "checksum" not in errors:
        errors |= _file_errors(entry)
    return errors


def _messages(error: ModelMoraError) -> list[str]:
    if isinstance(error, ValidationFailed):
        return [text for messages in error.details["fields"].values() for text in messages]
    return [error.message.rstrip(".")]


def _file_errors(entry: LockedModelEntry) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    for index, file in enumerate(entry.files):
        if not is_plain_path(file.path):
            errors[f"files[{index}].path"] = [f"{file.path!r} is not a path inside the source"]
        if not _SHA256.fullmatch(file.sha256):
            errors[f"files[{index}].sha256"] = ["must be 64 lowercase hexadecimal digits"]
        if file.size < 0:
            errors[f"files[{index}].size"] = ["must be 0 or more"]
    if len({file.path for file in entry.files}) < len(entry.files):
        errors["files"] = ["a path is there twice"]
    if entry.files and not errors and source_checksum(entry.files) != entry.checksum:
        errors["checksum"] = [
            f"is not that of the files below it, which have {source_checksum(entry.files)}: one of "
            "them was edited; take the lock from where it was written, or write it anew with: "
            "modelmora lock"
        ]
    return errors


def _entry_warnings(entry: LockedModelEntry) -> list[str]:
    without_files = [] if entry.files else ["has no digests of single files"]
    return without_files + entry.resource_requirements.warnings()


# -- making ------------------------------------------------------------------------------------


def entry_of(model: Model, version: ModelVersion, files: Iterable[SourceFile]) -> LockedModelEntry:
    """The snapshot of a ready version.

    Args:
        files: those of its source, in any order; none when nobody recorded them.
    """
    needs = version.resource_requirements or ResourceRequirements.estimate(
        version.artefact_bytes or 0
    )
    return LockedModelEntry(
        model_id=model.model_id,
        version=version.version,
        revision=version.revision,
        checksum=version.checksum or "",
        files=tuple(sorted(files, key=lambda file: file.path)),
        artifact_uri=version.artifact_uri or "",
        source_url=model.source_url,
        task_type=model.task_type.value,
        resource_requirements=needs,
        converter=_converter_of(version),
        artefact_checksum=version.artefact_checksum,
        trust_remote_code=version.trust_remote_code,
    )


def _converter_of(version: ModelVersion) -> Converter | None:
    manifest = version.artefact
    if not manifest:
        return None
    known = {*Converter.__struct_fields__}
    facts = {k: v for k, v in manifest.get("converter", {}).items() if k in known}
    facts |= {name: manifest[name] for name in ("engine", "precision") if name in manifest}
    return Converter(**facts)
