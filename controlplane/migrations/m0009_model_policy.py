"""What owners want of a model's stay in memory: kept, and how long it may idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def up(db: Database) -> None:
    """Add the columns; no model is kept at first, and all idle as the setting says."""
    db.execute(
        "ALTER TABLE model ADD COLUMN keep_loaded INTEGER NOT NULL DEFAULT 0"
        " CHECK (keep_loaded IN (0, 1))"
    )
    db.execute("ALTER TABLE model ADD COLUMN idle_ttl REAL")


def down(db: Database) -> None:
    """Take them away; what was wanted is forgotten."""
    db.execute("ALTER TABLE model DROP COLUMN idle_ttl")
    db.execute("ALTER TABLE model DROP COLUMN keep_loaded")
