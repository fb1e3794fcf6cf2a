"""What the client's operations on versions return: the REST bodies as frozen structs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from controlplane.client_operation_types import Operation


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model; memory in MB."""

    model_id: str
    version: str
    status: str
    current: bool = False
    loaded: bool = False
    error: str | None = None
    revision: str | None = None
    checksum: str | None = None
    artifact_uri: str | None = None
    backend: str | None = None
    engine: str | None = None
    triton_name: str | None = None
    triton_version: int | None = None
    metadata: dict[str, Any] | None = None
    resource_requirements: dict[str, Any] | None = None
    measured_memory_mb: float | None = None
    artefact_bytes: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    version_number: int | None = None
    trust_remote_code: bool = False


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of a model, as they were registered; `latest` is the newest ready one."""

    model_id: str
    current_version: str
    data: list[VersionInfo]
    pinned: bool = False
    latest: str | None = None


class VersionSwitched(msgspec.Struct, frozen=True, kw_only=True):
    """`switch`: live, drained (requests waited, there was no room for both), or unloaded."""

    model_id: str
    version: str
    previous_version: str
    switch: str = "unloaded"


class UpgradeAccepted(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    version: str
    previous_version: str
    status: str
    up_to_date: bool = False
    operation: Operation | None = None


class UpdateInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How the current version compares with the hub; with `error`, nothing is known."""

    model_id: str
    version: str
    outdated: bool
    pinned: bool = False
    newer_versions: list[str] = []
    revision: str | None = None
    branch: str | None = None
    branch_revision: str | None = None
    error: str | None = None


class UpdateList(msgspec.Struct, frozen=True, kw_only=True):
    data: list[UpdateInfo]
