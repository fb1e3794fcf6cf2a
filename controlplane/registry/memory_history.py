"""What loaded versions took, over time: one row for each load and each change worth knowing."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from controlplane.db import from_text, to_text, transaction
from controlplane.errors import ValidationFailed
from controlplane.events import utc_now
from controlplane.paging import Page, page_faults
from controlplane.registry.rows import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlite_utils import Database

    from controlplane.registry.rows import Row

KEPT = 200  # rows of a version

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

    def page(
        self, version_ids: Sequence[str], *, page: int = 1, page_size: int = 20
    ) -> Page[MemoryRecord]:
        """A page of the records of some versions, the newest first.

        Args:
            page: from 1.
            page_size: 1 to 100.

        Raises:
            ValidationFailed: naming the argument that breaks a rule.
        """
        if errors := page_faults(page, page_size):
            raise ValidationFailed(errors)
        marks = ", ".join("?" for _ in version_ids)
        where = f"FROM memory_history AS h WHERE version_id IN ({marks})"
        total = query(self._db, f"SELECT count(*) AS n {where}", version_ids)[0]["n"]
        rows = query(
            self._db,
            "SELECT h.*, (SELECT version FROM model_version AS v WHERE v.id = h.version_id)"
            f" AS version {where} ORDER BY id DESC LIMIT ? OFFSET ?",
            [*version_ids, page_size, (page - 1) * page_size],
        )
        return Page(
            items=tuple(_record(row) for row in rows),
            page=page,
            page_size=page_size,
            total_items=total,
        )


def _record(row: Row) -> MemoryRecord:
    return MemoryRecord(
        version=row["version"],
        at=from_text(row["at"]),
        used_mb=row["used_mb"],
        peak_mb=row["peak_mb"],
        gpu_mb=row["gpu_mb"],
        reason=row["reason"],
    )
