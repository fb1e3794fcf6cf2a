"""Versions, and entries of locks, whose repository's own code may run in the converter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_TABLES = ("model_version", "locked_model_entry")


def up(db: Database) -> None:
    """Add the mark; nothing is trusted at first."""
    for table in _TABLES:
        db.execute(
            f"ALTER TABLE {table} ADD COLUMN trust_remote_code INTEGER NOT NULL DEFAULT 0"
            " CHECK (trust_remote_code IN (0, 1))"
        )


def down(db: Database) -> None:
    """Take the mark away: what was trusted is forgotten, and refused when installed again."""
    for table in _TABLES:
        db.execute(f"ALTER TABLE {table} DROP COLUMN trust_remote_code")
