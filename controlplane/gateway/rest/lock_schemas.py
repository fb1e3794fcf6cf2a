"""The JSON bodies of the routes of locks. Absent values are left out, never null."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import Id, Json, Request, present, without_nulls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.registry.lock import LockDocument, ModelLock
    from controlplane.registry.lock_store import Revision
    from controlplane.registry.locking import Comparison

Models = Annotated[
    list[Id] | None, Meta(description="Models to lock; left out: all that are ready.")
]
Upgrade = Annotated[
    tuple[Id, ...],
    Meta(description="Models of which the newest installed version is locked."),
]


class CreateLockRequest(Request):
    name: Annotated[str, Meta(description="Name of the lock.", examples=["default"])]
    environment: Annotated[str, Meta(examples=["production"])] = "production"
    description: str | None = None
    models: Models = None
    upgrade: Upgrade = ()
    created_by: str | None = None


class UpdateLockRequest(Request):
    """Fields left out stay as they are; null clears the description."""

    refresh: Annotated[bool, Meta(description="Take the entries anew from the catalog.")] = False
    models: Models = None
    upgrade: Upgrade = ()
    environment: str | None = None
    description: str | UnsetType | None = UNSET
    active: Annotated[
        bool | None, Meta(description="An active lock protects its models from deletion.")
    ] = None
    version_number: Annotated[
        int | None,
        Meta(description="Refuse the change (409) if the lock is no longer at this number."),
    ] = None


class SyncLockRequest(Request):
    dry_run: Annotated[bool, Meta(description="Only answer what would be done.")] = False
    frozen: Annotated[bool, Meta(description="Refuse (409) to change anything.")] = False
    prune: Annotated[bool, Meta(description="Remove models that are not in the lock.")] = False


class RollbackRequest(Request):
    version: Annotated[int, Meta(description="The version of the lock to go back to.")]
    version_number: int | None = None


class LockApiRequest(Request):
    """POST /api/v1/models/lock: nothing has to be sent."""

    models: Models = None


class LockApiEntry(msgspec.Struct, kw_only=True):
    model_id: str
    version: str
    source_url: str
    checksum: str
    task_type: str


class LockApiFile(msgspec.Struct, kw_only=True):
    """A lock in the short form of domain §8.3; the file `modelmora.lock` says more."""

    version: str
    generated_at: datetime
    models: list[LockApiEntry]


class LockSummary(msgspec.Struct, kw_only=True):
    name: str
    environment: str
    active: bool
    models: int
    version_number: int
    created_at: datetime
    updated_at: datetime
    description: str | UnsetType = UNSET

    @classmethod
    def of(cls, lock: ModelLock) -> LockSummary:
        document = lock.document
        return cls(
            name=lock.name,
            environment=document.environment,
            active=lock.active,
            models=len(document.locked_models),
            version_number=lock.version,
            created_at=lock.created_at,
            updated_at=lock.updated_at,
            description=present(document.description),
        )


class LockList(msgspec.Struct, kw_only=True):
    data: list[LockSummary]


class LockResponse(msgspec.Struct, kw_only=True):
    """A lock; `locked_models` as in its file."""

    id: str
    name: str
    environment: str
    active: bool
    lock_version: str
    generated_at: datetime
    locked_models: list[Json]
    version_number: int
    created_at: datetime
    updated_at: datetime
    description: str | UnsetType = UNSET
    created_by: str | UnsetType = UNSET

    @classmethod
    def of(cls, lock: ModelLock) -> LockResponse:
        document = lock.document
        return cls(
            id=lock.id,
            name=lock.name,
            environment=document.environment,
            active=lock.active,
            lock_version=document.lock_version,
            generated_at=document.generated_at,
            locked_models=_entries(document),
            version_number=lock.version,
            created_at=lock.created_at,
            updated_at=lock.updated_at,
            description=present(document.description),
            created_by=present(lock.created_by),
        )


class LockRevision(msgspec.Struct, kw_only=True):
    version: int
    created_at: datetime
    environment: str
    locked_models: list[Json]


class LockRevisions(msgspec.Struct, kw_only=True):
    """What a lock said at each of its versions, oldest first."""

    name: str
    data: list[LockRevision]

    @classmethod
    def of(cls, name: str, revisions: Iterable[Revision]) -> LockRevisions:
        return cls(
            name=name,
            data=[
                LockRevision(
                    version=revision.version,
                    created_at=revision.created_at,
                    environment=revision.document.environment,
                    locked_models=_entries(revision.document),
                )
                for revision in revisions
            ],
        )


class ComparisonResponse(msgspec.Struct, kw_only=True):
    """A lock beside the catalog; `differences` is empty when the lock is up to date.

    Attributes:
        actions: what a sync would do.
    """

    name: str
    differences: list[Json]
    actions: list[Json]
    warnings: list[str]

    @classmethod
    def of(cls, name: str, found: Comparison) -> ComparisonResponse:
        return cls(
            name=name,
            differences=[
                without_nulls(item) | {"message": str(item)} for item in found.differences
            ],
            actions=[without_nulls(action) for action in found.actions],
            warnings=list(found.warnings),
        )


def _entries(document: LockDocument) -> list[Json]:
    return [without_nulls(entry) for entry in document.locked_models]
