"""The JSON bodies of the routes of models (domain §8.3)."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import (
    EngineName,
    Id,
    IdleTtl,
    Json,
    KeepLoaded,
    Pagination,
    PrecisionName,
    Request,
    TrustRemoteCode,
    Version,
    present,
    without_nulls,
)
from controlplane.registry.engine_choice import parse_choice
from controlplane.registry.facts import FACTS
from controlplane.registry.model import (
    Model,
    ModelChange,
    ModelVersion,
    NewModel,
    ResourceRequirements,
)
from controlplane.registry.ready_artefact import describe

if TYPE_CHECKING:
    from controlplane.registry.files import Progress


class Requirements(Request):
    memory_mb: Annotated[int, Meta(description="Memory the model needs, MB.", examples=[512])]
    gpu_vram_mb: int = 0
    cpu_threads: int = 1
    gpu_count: int | None = None
    min_memory_mb: int | None = None
    disk_space_mb: int | None = None

    def to_domain(self) -> ResourceRequirements:
        return msgspec.convert(self, ResourceRequirements, from_attributes=True)


class RegisterModelRequest(Request):
    model_id: Id
    task_type: Annotated[
        str | None,
        Meta(
            description="What the model does; left out, it is read from the model's own files.",
            examples=["txt2embed"],
        ),
    ] = None
    version: Version = "main"
    display_name: str | None = None
    description: str | None = None
    source_url: Annotated[
        str | None,
        Meta(
            description="Instead of the HuggingFace hub: a directory of the server's machine, "
            "an https:// archive, or s3://bucket/prefix.",
            examples=["file:///srv/models/minilm"],
        ),
    ] = None
    resource_requirements: Requirements | None = None
    config: Json = msgspec.field(default_factory=dict)
    custom_params: Json = msgspec.field(default_factory=dict)
    framework: str = "pytorch"
    framework_version: str | None = None
    metadata: Json = msgspec.field(default_factory=dict)
    created_by: str | None = None
    keep_loaded: KeepLoaded = False
    idle_ttl: IdleTtl | None = None
    trust_remote_code: TrustRemoteCode = False
    engine: EngineName | None = None
    precision: PrecisionName | None = None

    def to_domain(self) -> NewModel:
        values = msgspec.structs.asdict(self)
        choice = parse_choice(values.pop("engine"), values.pop("precision"))
        values["engine_choice"] = choice
        if self.resource_requirements is not None:
            values["resource_requirements"] = self.resource_requirements.to_domain()
        return NewModel(**values)


class UpdateModelRequest(Request):
    """Fields left out stay as they are; null clears a text."""

    display_name: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    config: Json | UnsetType = UNSET
    resource_requirements: Requirements | UnsetType = UNSET
    keep_loaded: KeepLoaded | UnsetType = UNSET
    idle_ttl: IdleTtl | UnsetType | None = UNSET
    version_number: Annotated[
        int | UnsetType,
        Meta(description="Refuse the change (409) if the model is no longer at this number."),
    ] = UNSET

    def to_domain(self) -> ModelChange:
        requirements = self.resource_requirements
        return ModelChange(
            display_name=self.display_name,
            description=self.description,
            config=self.config,
            resource_requirements=(
                requirements.to_domain() if isinstance(requirements, Requirements) else UNSET
            ),
            keep_loaded=self.keep_loaded,
            idle_ttl=self.idle_ttl,
        )


class ProgressBody(msgspec.Struct, kw_only=True):
    """How far an installation is; `fraction` is 0 to 1 within the phase."""

    phase: str
    step: str
    message: str
    fraction: float | UnsetType = UNSET
    bytes_done: int | UnsetType = UNSET
    bytes_total: int | UnsetType = UNSET
    rate: float | UnsetType = UNSET

    @classmethod
    def of(cls, progress: Progress) -> ProgressBody:
        return cls(
            phase=progress.phase,
            step=progress.step,
            message=progress.message,
            fraction=present(progress.fraction),
            bytes_done=present(progress.bytes_done),
            bytes_total=present(progress.bytes_total),
            rate=present(progress.rate),
        )


class ModelResponse(msgspec.Struct, kw_only=True):
    """A model; `status` and everything about its bytes are those of `version`, the current one
    unless another was asked for."""

    id: str
    model_id: Id
    task_type: str
    version: Version
    current_version: Version
    versions: list[str]
    status: Literal["registered", "downloading", "exporting", "ready", "failed"]
    config: Json
    custom_params: Json
    framework: str
    triton_name: str
    triton_version: int
    created_at: datetime
    updated_at: datetime
    version_number: int
    pinned: bool
    keep_loaded: bool
    trust_remote_code: bool
    idle_ttl: float | UnsetType = UNSET
    error: str | UnsetType = UNSET
    unavailable: Annotated[
        str | UnsetType,
        Meta(description="Why the model's task cannot be served: what is wrong with its plugin."),
    ] = UNSET
    display_name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    source_url: str | UnsetType = UNSET
    resource_requirements: Json | UnsetType = UNSET
    revision: str | UnsetType = UNSET
    checksum: str | UnsetType = UNSET
    artifact_uri: str | UnsetType = UNSET
    framework_version: str | UnsetType = UNSET
    backend: str | UnsetType = UNSET
    engine: str | UnsetType = UNSET
    measured_memory_mb: float | UnsetType = UNSET
    artefact_bytes: int | UnsetType = UNSET
    artefact: Json | UnsetType = UNSET
    facts: Annotated[
        Json | UnsetType,
        Meta(description="What is known about the model: value, and source file|curated|explicit."),
    ] = UNSET
    progress: ProgressBody | UnsetType = UNSET

    @classmethod
    def of(
        cls, model: Model, progress: Progress | None = None, shown: ModelVersion | None = None
    ) -> ModelResponse:
        current = shown or model.current
        needs = current.resource_requirements
        return cls(
            id=model.id,
            model_id=model.model_id,
            task_type=str(model.task_type),
            version=current.version,
            trust_remote_code=current.trust_remote_code,
            keep_loaded=model.keep_loaded,
            idle_ttl=present(model.idle_ttl),
            current_version=model.current_version,
            versions=[version.version for version in model.versions],
            status=current.status.value,
            error=present(current.error_message),
            unavailable=present(model.task_type.refusal),
            display_name=present(model.display_name),
            description=present(model.description),
            source_url=present(model.source_url),
            config=model.config,
            custom_params=model.custom_params,
            resource_requirements=UNSET if needs is None else without_nulls(needs),
            revision=present(current.revision),
            checksum=present(current.checksum),
            artifact_uri=present(current.artifact_uri),
            framework=current.framework,
            framework_version=present(current.framework_version),
            backend=present(current.backend),
            engine=present(current.engine),
            triton_name=current.triton_name,
            triton_version=current.triton_version,
            measured_memory_mb=present(current.measured_memory_mb),
            artefact_bytes=present(current.artefact_bytes),
            artefact=_artefact(current.artefact),
            facts=current.metadata.get(FACTS) or UNSET,
            progress=UNSET if progress is None else ProgressBody.of(progress),
            created_at=model.created_at,
            updated_at=model.updated_at,
            version_number=model.version,
            pinned=model.pinned,
        )


def _artefact(manifest: Json | None) -> Json | UnsetType:
    """What people ask of a converted model, out of the converter's manifest."""
    if not manifest:
        return UNSET
    embedding = manifest.get("text_embedding") or {}
    chosen = {
        "dimension": embedding.get("dimension"),
        "max_seq_length": embedding.get("max_seq_length"),
        "inputs": [tensor["name"] for tensor in manifest.get("inputs") or ()] or None,
        "precision": manifest.get("precision"),
        "candidates": manifest.get("candidates"),
        "parity": manifest.get("parity"),
        "converter": manifest.get("converter"),
        "ready_made": describe(manifest),
    }
    return {name: value for name, value in chosen.items() if value is not None}


class ModelPage(msgspec.Struct, kw_only=True):
    data: list[ModelResponse]
    pagination: Pagination


class DownloadRequest(Request):
    version: Version | None = None
    trust_remote_code: Annotated[
        bool,
        Meta(
            description="Run code of the repository while it is converted; the server has to allow "
            "it (allow_remote_code). For versions that were not downloaded yet."
        ),
    ] = False
    engine: EngineName | None = None
    precision: PrecisionName | None = None
