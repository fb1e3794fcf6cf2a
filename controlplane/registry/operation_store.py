"""The record of operations in the database. All calls on the event loop's thread, all short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.db import transaction
from controlplane.errors import OperationNotFound, ValidationFailed
from controlplane.moments import from_text, to_text
from controlplane.paging import Page, page_faults
from controlplane.registry.lock_work import LockWork
from controlplane.registry.model import ModelId
from controlplane.registry.operation import (
    ACTIVE,
    KINDS,
    Operation,
    OperationError,
    OperationStatus,
)
from controlplane.registry.rows import cell, insert, query

if TYPE_CHECKING:
    from sqlite_utils import Database

    from controlplane.registry.rows import Row

# A word for "not ended", beside the statuses themselves.
ACTIVE_FILTER = "active"
_STATUSES = tuple(status.value for status in OperationStatus)
_KEPT = 1000  # of those that ended
_PLAIN = (
    *("id", "kind", "model_id", "version", "version_id", "attempts", "phase", "step", "message"),
    *("fraction", "bytes_done", "bytes_total"),
)
_TIMES = ("created_at", "updated_at", "started_at", "finished_at")


class OperationStore:
    """Rows of the table `operation`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, operation: Operation) -> None:
        """Record a new operation."""
        with transaction(self._db):
            insert(self._db, "operation", _cells(operation))

    def save(self, operation: Operation) -> None:
        """Record how an operation stands now."""
        cells = _cells(operation)
        names = ", ".join(f"{name} = ?" for name in cells)
        values = [cell(value) for value in cells.values()]
        with transaction(self._db):
            self._db.execute(f"UPDATE operation SET {names} WHERE id = ?", [*values, operation.id])

    def get(self, operation_id: str) -> Operation:
        """Raises OperationNotFound."""
        rows = query(self._db, "SELECT * FROM operation WHERE id = ?", [operation_id])
        if not rows:
            raise OperationNotFound(operation_id)
        return _operation(rows[0])

    def active(self) -> tuple[Operation, ...]:
        """Those that have not ended, the oldest first."""
        rows = query(
            self._db,
            "SELECT * FROM operation WHERE status IN ('pending', 'running')"
            " ORDER BY created_at, id",
        )
        return tuple(_operation(row) for row in rows)

    def of_version(self, version_id: str, *, active: bool) -> Operation | None:
        """The newest operation of a version among those that have (not) ended."""
        rows = query(
            self._db,
            "SELECT * FROM operation WHERE version_id = ?"
            f" AND status {'' if active else 'NOT '}IN ('pending', 'running')"
            " ORDER BY created_at DESC, id LIMIT 1",
            [version_id],
        )
        return _operation(rows[0]) if rows else None

    def page(
        self,
        *,
        model_id: str | None = None,
        kind: str | None = None,
        status: str | None = None,
        page: int = 1,
        page_size: int = 20,
    ) -> Page[Operation]:
        """A page of the operations that match every given filter, the newest first.

        Args:
            status: one status, or `active` for those that have not ended.
            page: from 1.
            page_size: 1 to 100.

        Raises:
            InvalidModelId: for `model_id`.
            ValidationFailed: naming each other argument that breaks a rule.
        """
        _check(kind, status, page, page_size)
        where, params = _filters(model_id, kind, status)
        total = query(self._db, f"SELECT count(*) AS n FROM operation {where}", params)[0]["n"]
        rows = query(
            self._db,
            f"SELECT * FROM operation {where} ORDER BY created_at DESC, id LIMIT ? OFFSET ?",
            [*params, page_size, (page - 1) * page_size],
        )
        return Page(
            items=tuple(_operation(row) for row in rows),
            page=page,
            page_size=page_size,
            total_items=total,
        )

    def prune(self, kept: int = _KEPT) -> None:
        """Forget the oldest of those that ended, beyond `kept`."""
        with transaction(self._db):
            self._db.execute(
                "DELETE FROM operation WHERE finished_at IS NOT NULL AND id NOT IN ("
                " SELECT id FROM operation WHERE finished_at IS NOT NULL"
                " ORDER BY created_at DESC, id LIMIT ?)",
                [kept],
            )


def _check(kind: str | None, status: str | None, page: int, page_size: int) -> None:
    allowed = (ACTIVE_FILTER, *_STATUSES)
    rules = {
        "kind": (kind is None or kind in KINDS, f"must be one of {', '.join(KINDS)}"),
        "status": (status is None or status in allowed, f"must be one of {', '.join(allowed)}"),
    }
    errors = page_faults(page, page_size)
    errors |= {name: [text] for name, (holds, text) in rules.items() if not holds}
    if errors:
        raise ValidationFailed(errors)


def _filters(model_id: str | None, kind: str | None, status: str | None) -> tuple[str, list[Any]]:
    clauses, params = ["1"], []
    if model_id is not None:
        clauses.append("model_id = ?")
        params.append(str(ModelId.from_any_spelling(model_id)))
    if kind is not None:
        clauses.append("kind = ?")
        params.append(kind)
    if status is not None:
        wanted = [item.value for item in ACTIVE] if status == ACTIVE_FILTER else [status]
        clauses.append(f"status IN ({', '.join('?' for _ in wanted)})")
        params += wanted
    return f"WHERE {' AND '.join(clauses)}", params


def _cells(operation: Operation) -> dict[str, Any]:
    """The row of an operation; its rate is of the moment and not kept."""
    error = operation.error
    times = {name: getattr(operation, name) for name in _TIMES}
    return {
        **{name: getattr(operation, name) for name in _PLAIN},
        "work": operation.work,
        "status": operation.status.value,
        "error_code": error and error.code,
        "error_message": error and error.message,
        **{name: moment and to_text(moment) for name, moment in times.items()},
    }


def _operation(row: Row) -> Operation:
    error = row["error_code"] and OperationError(row["error_code"], row["error_message"])
    times: dict[str, Any] = {name: row[name] and from_text(row[name]) for name in _TIMES}
    return Operation(
        **{name: row[name] for name in _PLAIN},
        **times,
        work=row["work"] and msgspec.json.decode(row["work"], type=LockWork),
        status=OperationStatus(row["status"]),
        error=error or None,
    )
