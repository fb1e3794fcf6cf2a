"""Versions whose engine somebody chose, instead of leaving it to measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def up(db: Database) -> None:
    """Add the choice, as JSON: engine, precision, required; null leaves it to measurement."""
    db.execute("ALTER TABLE model_version ADD COLUMN engine_choice TEXT")


def down(db: Database) -> None:
    """Take the choice away: the next conversion measures."""
    db.execute("ALTER TABLE model_version DROP COLUMN engine_choice")
