"""Versions whose engine somebody chose, and operations that measure engines again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.migrations import m0012_lock_operations as before

if TYPE_CHECKING:
    from sqlite_utils import Database

_KEPT = f"{before._KEPT}, work"
_SUBJECT = before._NEW_SUBJECT.replace("'verify')", "'verify', 'tune')")
_CHECKS = before._NEW_CHECKS.replace("(kind = 'install')", "(kind IN ('install', 'tune'))")


def _make_anew(db: Database, table: str) -> None:
    # As in the step before, whose table this is; all its kinds are kept.
    db.execute(table)
    kept = f"SELECT {_KEPT} FROM operation WHERE kind IN ('install', 'sync', 'verify')"
    db.execute(f"INSERT INTO operation_anew ({_KEPT}) {kept}")
    db.execute("DROP TABLE operation")
    db.execute("ALTER TABLE operation_anew RENAME TO operation")
    for index in before._INDEXES:
        db.execute(index)


def up(db: Database) -> None:
    """Add the choice, as JSON: engine, precision, required; null leaves it to measurement."""
    db.execute("ALTER TABLE model_version ADD COLUMN engine_choice TEXT")
    _make_anew(db, before._table(_SUBJECT, _CHECKS))


def down(db: Database) -> None:
    """Take the choice away: the next conversion measures. Records of tuning are lost."""
    _make_anew(db, before._table(before._NEW_SUBJECT, before._NEW_CHECKS))
    db.execute("ALTER TABLE model_version DROP COLUMN engine_choice")
