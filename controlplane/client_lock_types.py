"""What the client's operations on locks return: the REST bodies as frozen structs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class LockSummary(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    environment: str
    active: bool
    models: int
    version_number: int
    description: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class LockList(msgspec.Struct, frozen=True, kw_only=True):
    data: list[LockSummary]


class LockedModel(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a lock, as in its file."""

    model_id: str
    version: str
    checksum: str
    artifact_uri: str
    task_type: str
    resource_requirements: dict[str, Any]
    revision: str | None = None
    source_url: str | None = None
    files: list[dict[str, Any]] = []
    converter: dict[str, Any] | None = None
    artefact_checksum: str | None = None
    trust_remote_code: bool = False


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """A lock; `version_number` grows with every change, and `rollback_lock` goes back to one."""

    name: str
    environment: str
    active: bool
    version_number: int
    locked_models: list[LockedModel]
    lock_version: str | None = None
    generated_at: datetime | None = None
    description: str | None = None
    created_by: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class LockRevision(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    environment: str
    locked_models: list[LockedModel]
    created_at: datetime | None = None


class LockRevisions(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    data: list[LockRevision]


class LockDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a lock is not the catalog; `field` is model when a whole entry is."""

    model_id: str
    field: str
    message: str
    locked: str | None = None
    found: str | None = None


class LockAction(msgspec.Struct, frozen=True, kw_only=True):
    """What a sync would do: install, switch, extra (nothing), remove; conflict: it cannot."""

    kind: str
    model_id: str
    version: str
    reason: str


class LockComparison(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    differences: list[LockDifference]
    actions: list[LockAction]
    warnings: list[str] = []
