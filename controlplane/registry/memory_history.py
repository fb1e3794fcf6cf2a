"""What loaded versions took, over time: one row for each load and each change worth knowing."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from controlplane.db import from_text, to_text, transaction
from controlplane.errors import ValidationFailed
from controlplane.events import utc_now
from controlplane.registry.catalog import MAX_PAGE_SIZE
from controlplane.registry.rows import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlite_utils import Database

    from controlplane.registry.rows import Row

KEPT = 200  # rows of a version
_MAX_PAGE = 10**12

Reason = Literal["load", "change"]


class MemoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, in MB (domain §3.6).

    Attributes:
        version: version string of the model.
        peak_mb: the most since this load.
        gpu_mb: on all GPUs; None where none could be asked.
        reason: `load`, or `change` of what it takes since the record before.
    """

    version: str
    at: datetime
    used_mb: float
    peak_mb: float
    gpu_mb: float | None
    reason: Reason


class MemoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of records, the newest first; `total_pages` is 0 when there are none."""

    items: tuple[MemoryRecord, ...]
    page: int
    page_size: int
    total_items: int
    total_pages: int


class MemoryHistory:
    """Rows of the table `memory_history`. All calls on the event loop's thread, all short."""

    def __init__(self, db: Database, *, kept: int = KEPT) -> None:
        self._db = db
        self._kept = kept

    def add(
        self,
        version_id: str,
        *,
        used_mb: float,
        peak_mb: float,
        gpu_mb: float | None,
        reason: Reason,
    ) -> None:
        """Record a measurement and forget the oldest beyond `kept`; a version that is gone is
        ignored."""
        values = (to_text(utc_now()), used_mb, max(used_mb, peak_mb), gpu_mb, reason, version_id)
        with transaction(self._db):
            self._db.execute(
                "INSERT INTO memory_history (version_id, at, used_mb, peak_mb, gpu_mb, reason)"
                " SELECT id, ?, ?, ?, ?, ? FROM model_version WHERE id = ?",
                values,
            )
            self._db.execute(
                "DELETE FROM memory_history WHERE version_id = ? AND id NOT IN"
                " (SELECT id FROM memory_history WHERE version_id = ? ORDER BY id DESC LIMIT ?)",
                [version_id, version_id, self._kept],
            )

    def page(self, version_ids: Sequence[str], *, page: int = 1, page_size: int = 20) -> MemoryPage:
        """A page of the records of some versions, the newest first.

        Args:
            page: from 1.
            page_size: 1 to 100.

        Raises:
            ValidationFailed: naming the argument that breaks a rule.
        """
        _check(page, page_size)
        marks = ", ".join("?" for _ in version_ids)
        where = f"FROM memory_history AS h WHERE version_id IN ({marks})"
        total = query(self._db, f"SELECT count(*) AS n {where}", version_ids)[0]["n"]
        rows = query(
            self._db,
            "SELECT h.*, (SELECT version FROM model_version AS v WHERE v.id = h.version_id)"
            f" AS version {where} ORDER BY id DESC LIMIT ? OFFSET ?",
            [*version_ids, page_size, (page - 1) * page_size],
        )
        return MemoryPage(
            items=tuple(_record(row) for row in rows),
            page=page,
            page_size=page_size,
            total_items=total,
            total_pages=-(-total // page_size),
        )


def _check(page: int, page_size: int) -> None:
    rules = {
        "page": (1 <= page <= _MAX_PAGE, "must be 1 or more"),
        "page_size": (1 <= page_size <= MAX_PAGE_SIZE, f"must be 1 to {MAX_PAGE_SIZE}"),
    }
    errors = {name: [text] for name, (holds, text) in rules.items() if not holds}
    if errors:
        raise ValidationFailed(errors)


def _record(row: Row) -> MemoryRecord:
    return MemoryRecord(
        version=row["version"],
        at=from_text(row["at"]),
        used_mb=row["used_mb"],
        peak_mb=row["peak_mb"],
        gpu_mb=row["gpu_mb"],
        reason=row["reason"],
    )
