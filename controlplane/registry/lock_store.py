"""The store of locks: every change with its revision and its event, in one transaction."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.db import recorded_change
from controlplane.errors import (
    ConcurrentModification,
    InvalidLock,
    LockAlreadyExists,
    LockNotFound,
    ValidationFailed,
)
from controlplane.events import LockCreated, LockDeleted, LockUpdated, utc_now
from controlplane.moments import from_text
from controlplane.registry.files import SourceFile
from controlplane.registry.lock import (
    Converter,
    LockDocument,
    LockedModelEntry,
    ModelLock,
    validate,
)
from controlplane.registry.model import ResourceRequirements
from controlplane.registry.rows import insert, query, update

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlite_utils import Database

    from controlplane.events import DomainEvent, EventBus
    from controlplane.registry.rows import Row


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock said at one of its versions."""

    version: int
    created_at: datetime
    document: LockDocument


class LockStore:
    """Locks by their names. All calls on one thread, as the model store's."""

    def __init__(self, db: Database, bus: EventBus) -> None:
        self._db = db
        self._bus = bus

    def get(self, name: str) -> ModelLock:
        """The lock of that name.

        Raises:
            LockNotFound.
        """
        rows = query(self._db, "SELECT * FROM model_lock WHERE name = ?", [name])
        if not rows:
            raise LockNotFound(name)
        return self._lock_from(rows[0])

    def every(self, environment: str | None = None) -> tuple[ModelLock, ...]:
        """All locks, or those of one environment, by name."""
        rows = query(
            self._db,
            "SELECT * FROM model_lock WHERE ? IS NULL OR environment = ? ORDER BY name",
            [environment, environment],
        )
        return tuple(self._lock_from(row) for row in rows)

    def create(
        self, document: LockDocument, *, active: bool = True, created_by: str | None = None
    ) -> ModelLock:
        """Keep a new lock.

        Raises:
            InvalidLock: the document breaks a rule.
            LockAlreadyExists.
        """
        _check(document)
        with self._change() as events:
            if query(self._db, "SELECT 1 FROM model_lock WHERE name = ?", [document.name]):
                raise LockAlreadyExists(document.name)
            now, lock_id = utc_now(), str(uuid.uuid4())
            row = {
                "id": lock_id,
                "name": document.name,
                "active": active,
                "created_by": created_by,
                "created_at": now,
                "updated_at": now,
                **_columns(document),
            }
            insert(self._db, "model_lock", row)
            self._write_content(lock_id, 1, document)
            events.append(
                LockCreated(
                    aggregate_id=lock_id,
                    name=document.name,
                    environment=document.environment,
                    models=len(document.locked_models),
                )
            )
        return self.get(document.name)

    def update(
        self,
        document: LockDocument,
        *,
        active: bool | None = None,
        expected_version: int | None = None,
    ) -> ModelLock:
        """Have the lock of the document's name say this from now on; no change is no new version.

        Raises:
            InvalidLock, LockNotFound.
            ConcurrentModification: the lock is no longer at `expected_version`.
        """
        _check(document)
        with self._change() as events:
            known = self.get(document.name)
            if expected_version is not None and expected_version != known.version:
                raise ConcurrentModification(f"Lock {known.name!r}", expected_version)
            protects = known.active if active is None else active
            same = known.document == document
            if same and protects == known.active:
                return known
            values: dict[str, Any] = {"active": protects}
            if not same:
                values |= _columns(document)
            if not update(
                self._db, "model_lock", known.id, known.version, utc_now(), values
            ):  # another process on the same file
                raise ConcurrentModification(f"Lock {known.name!r}", known.version)
            if not same:
                self._write_content(known.id, known.version + 1, document)
            events.append(_updated(known, document, active=protects))
        return self.get(document.name)

    def delete(self, name: str) -> ModelLock:
        """Forget a lock with its revisions; what was deleted.

        Raises:
            LockNotFound.
        """
        with self._change() as events:
            known = self.get(name)
            self._db.execute("DELETE FROM model_lock WHERE id = ?", [known.id])
            events.append(LockDeleted(aggregate_id=known.id, name=name))
        return known

    def revisions(self, name: str) -> tuple[Revision, ...]:
        """What the lock said, oldest first.

        Raises:
            LockNotFound.
        """
        rows = query(
            self._db,
            "SELECT * FROM model_lock_revision WHERE lock_id = ? ORDER BY version_number",
            [self.get(name).id],
        )
        return tuple(
            Revision(
                version=row["version_number"],
                created_at=from_text(row["created_at"]),
                document=msgspec.json.decode(row["content"], type=LockDocument),
            )
            for row in rows
        )

    def revision(self, name: str, version: int) -> Revision:
        """What the lock said at one of its versions.

        Raises:
            LockNotFound.
            ValidationFailed: it has no such revision; the message lists those it has.
        """
        revisions = self.revisions(name)
        found = next((item for item in revisions if item.version == version), None)
        if found is None:
            known = ", ".join(str(item.version) for item in revisions)
            raise ValidationFailed.field("version", f"the lock {name!r} has revisions {known}")
        return found

    # -- rows --------------------------------------------------------------------------------

    def _change(self) -> AbstractContextManager[list[DomainEvent]]:
        return recorded_change(self._db, self._bus)

    def _write_content(self, lock_id: str, version: int, document: LockDocument) -> None:
        self._db.execute("DELETE FROM locked_model_entry WHERE lock_id = ?", [lock_id])
        for entry in document.locked_models:
            values = {name: getattr(entry, name) for name in entry.__struct_fields__}
            values["files"] = msgspec.json.encode(entry.files).decode()
            insert(self._db, "locked_model_entry", {"lock_id": lock_id, **values})
        insert(
            self._db,
            "model_lock_revision",
            {
                "lock_id": lock_id,
                "version_number": version,
                "content": document,
                "created_at": utc_now(),
            },
        )

    def _lock_from(self, row: Row) -> ModelLock:
        entries = query(
            self._db,
            "SELECT * FROM locked_model_entry WHERE lock_id = ? ORDER BY model_id",
            [row["id"]],
        )
        document = LockDocument(
            generated_at=from_text(row["generated_at"]),
            name=row["name"],
            environment=row["environment"],
            description=row["description"],
            locked_models=tuple(_entry_from(entry) for entry in entries),
        )
        return ModelLock(
            id=row["id"],
            document=document,
            active=bool(row["active"]),
            version=row["version_number"],
            created_by=row["created_by"],
            created_at=from_text(row["created_at"]),
            updated_at=from_text(row["updated_at"]),
        )


def _check(document: LockDocument) -> None:
    errors = validate(document).errors
    if errors:
        raise InvalidLock(errors)


def _columns(document: LockDocument) -> dict[str, Any]:
    return {
        "description": document.description,
        "environment": document.environment,
        "generated_at": document.generated_at,
    }


def _updated(known: ModelLock, document: LockDocument, *, active: bool) -> LockUpdated:
    before = {entry.model_id: entry for entry in known.document.locked_models}
    after = {entry.model_id: entry for entry in document.locked_models}
    both = before.keys() & after.keys()
    return LockUpdated(
        aggregate_id=known.id,
        name=known.name,
        lock_version=known.version + 1,
        active=active,
        added=sorted(after.keys() - before.keys()),
        changed=sorted(name for name in both if before[name] != after[name]),
        removed=sorted(before.keys() - after.keys()),
    )


def _entry_from(row: Row) -> LockedModelEntry:
    plain = {
        name: row[name]
        for name in LockedModelEntry.__struct_fields__
        if name not in ("files", "resource_requirements", "converter", "trust_remote_code")
    }
    converter = row["converter"]
    return LockedModelEntry(
        **plain,
        files=msgspec.json.decode(row["files"], type=tuple[SourceFile, ...]),
        resource_requirements=msgspec.convert(
            json.loads(row["resource_requirements"]), ResourceRequirements
        ),
        converter=converter and msgspec.json.decode(converter, type=Converter),
        trust_remote_code=bool(row["trust_remote_code"]),
    )
