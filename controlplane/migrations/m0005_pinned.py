"""Models that upgrades leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def up(db: Database) -> None:
    """Add the mark; nothing is pinned at first."""
    db.execute(
        "ALTER TABLE model ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1))"
    )


def down(db: Database) -> None:
    """Take the mark away; which models were pinned is forgotten."""
    db.execute("ALTER TABLE model DROP COLUMN pinned")
