"""What loaded versions took over time, beside the one figure that decides on loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_UP = """
CREATE TABLE memory_history (
    id INTEGER PRIMARY KEY,
    version_id TEXT NOT NULL REFERENCES model_version (id) ON DELETE CASCADE,
    at TEXT NOT NULL,
    used_mb REAL NOT NULL CHECK (used_mb >= 0),
    peak_mb REAL NOT NULL CHECK (peak_mb >= used_mb),
    gpu_mb REAL CHECK (gpu_mb >= 0),
    reason TEXT NOT NULL CHECK (reason IN ('load', 'change'))
);
CREATE INDEX idx_memory_history_version_id ON memory_history (version_id, id);
"""


def up(db: Database) -> None:
    """Add the table."""
    db.executescript(_UP)


def down(db: Database) -> None:
    """Drop it; the figure that decides on loads stays with the version."""
    db.execute("DROP TABLE memory_history")
