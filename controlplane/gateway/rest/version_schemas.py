"""The JSON bodies of the routes on a model's versions."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.model_schemas import Requirements
from controlplane.gateway.rest.operation_schemas import OperationResponse
from controlplane.gateway.rest.schemas import (
    EngineName,
    Id,
    Json,
    PrecisionName,
    Request,
    TrustRemoteCode,
    Version,
    present,
    without_nulls,
)
from controlplane.registry.engine_choice import parse_choice

if TYPE_CHECKING:
    from controlplane.lifecycle.resident import ResidentView
    from controlplane.lifecycle.versions import Switched
    from controlplane.registry.model import Model, ModelVersion
    from controlplane.registry.upgrades import Update


class AddVersionRequest(Request):
    version: Version
    metadata: Json = msgspec.field(default_factory=dict)
    resource_requirements: Requirements | None = None
    created_by: str | None = None
    trust_remote_code: TrustRemoteCode = False
    engine: EngineName | None = None
    precision: PrecisionName | None = None

    def fields(self) -> Json:
        """Arguments of `ModelStore.add_version`."""
        needs = self.resource_requirements
        return {
            "metadata": self.metadata,
            "resource_requirements": None if needs is None else needs.to_domain(),
            "created_by": self.created_by,
            "trust_remote_code": self.trust_remote_code,
            "engine_choice": parse_choice(self.engine, self.precision),
        }


class VersionResponse(msgspec.Struct, kw_only=True):
    """One version of a model. `loaded` says whether it is in memory; memory is MB."""

    model_id: Id
    version: Version
    current: bool
    loaded: bool
    status: Literal["registered", "downloading", "exporting", "ready", "failed"]
    triton_name: str
    triton_version: int
    metadata: Json
    created_at: datetime
    updated_at: datetime
    version_number: int
    trust_remote_code: bool
    error: str | UnsetType = UNSET
    revision: str | UnsetType = UNSET
    checksum: str | UnsetType = UNSET
    artifact_uri: str | UnsetType = UNSET
    backend: str | UnsetType = UNSET
    engine: str | UnsetType = UNSET
    resource_requirements: Json | UnsetType = UNSET
    measured_memory_mb: float | UnsetType = UNSET
    artefact_bytes: int | UnsetType = UNSET

    @classmethod
    def of(cls, model: Model, version: ModelVersion, view: ResidentView | None) -> VersionResponse:
        needs = version.resource_requirements
        return cls(
            model_id=model.model_id,
            version=version.version,
            current=version.version == model.current_version,
            loaded=view is not None
            and view.version == version.version
            and view.state.value == "loaded",
            status=version.status.value,
            triton_name=version.triton_name,
            triton_version=version.triton_version,
            metadata=version.metadata,
            created_at=version.created_at,
            updated_at=version.updated_at,
            version_number=version.version_number,
            trust_remote_code=version.trust_remote_code,
            error=present(version.error_message),
            revision=present(version.revision),
            checksum=present(version.checksum),
            artifact_uri=present(version.artifact_uri),
            backend=present(version.backend),
            engine=present(version.engine),
            resource_requirements=UNSET if needs is None else without_nulls(needs),
            measured_memory_mb=present(version.measured_memory_mb),
            artefact_bytes=present(version.artefact_bytes),
        )


class VersionList(msgspec.Struct, kw_only=True):
    """A model's versions in the order of their registration; `latest` is the newest ready one."""

    model_id: Id
    current_version: Version
    pinned: bool
    data: list[VersionResponse]
    latest: Version | UnsetType = UNSET


class VersionSwitched(msgspec.Struct, kw_only=True):
    """A switch of the current version.

    `switch` tells how: `live` (the new version was loaded before the old one left), `drained` (no
    room for both, requests waited meanwhile), `unloaded` (nothing was in memory).
    """

    model_id: Id
    version: Version
    previous_version: Version
    switch: Literal["live", "drained", "unloaded"]

    @classmethod
    def of(cls, switched: Switched) -> VersionSwitched:
        return cls(
            model_id=switched.model_id,
            version=switched.version,
            previous_version=switched.previous_version,
            switch=switched.mode.value,
        )


class UpgradeRequest(Request):
    version: Annotated[
        Version | None,
        Meta(description="Tag, branch or commit; left out, what the hub has that is newer."),
    ] = None


class UpgradeAccepted(msgspec.Struct, kw_only=True):
    """`version` is being installed by `operation`, or is; it is current when made so."""

    model_id: Id
    version: Version
    previous_version: Version
    status: str
    up_to_date: bool
    operation: OperationResponse | UnsetType = UNSET


class UpdateInfo(msgspec.Struct, kw_only=True):
    """How the current version compares with the hub."""

    model_id: Id
    version: Version
    outdated: bool
    pinned: bool
    newer_versions: list[Version]
    revision: str | UnsetType = UNSET
    branch: str | UnsetType = UNSET
    branch_revision: str | UnsetType = UNSET
    error: str | UnsetType = UNSET

    @classmethod
    def of(cls, update: Update) -> UpdateInfo:
        return cls(
            model_id=update.model_id,
            version=update.version,
            outdated=update.outdated,
            pinned=update.pinned,
            newer_versions=list(update.newer_versions),
            revision=present(update.revision),
            branch=present(update.branch),
            branch_revision=present(update.branch_revision),
            error=present(update.error),
        )


class UpdateList(msgspec.Struct, kw_only=True):
    data: list[UpdateInfo]
