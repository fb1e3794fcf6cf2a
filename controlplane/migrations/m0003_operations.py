"""Background operations: what was asked for, how far it is, how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

# Neither model_id nor version_id is a foreign key: the record of what was done outlives the model.
_TABLES = """
CREATE TABLE operation (
    id TEXT PRIMARY KEY CHECK (length(id) = 36),
    kind TEXT NOT NULL CHECK (kind IN ('install')),
    model_id TEXT NOT NULL CHECK (length(model_id) BETWEEN 3 AND 255),
    version TEXT NOT NULL CHECK (length(version) BETWEEN 1 AND 100),
    version_id TEXT NOT NULL CHECK (length(version_id) = 36),
    status TEXT NOT NULL CHECK (status IN (
        'pending', 'running', 'succeeded', 'failed', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 1 CHECK (attempts >= 1),
    phase TEXT,
    step TEXT,
    message TEXT NOT NULL DEFAULT '',
    fraction REAL CHECK (fraction BETWEEN 0 AND 1),
    bytes_done INTEGER CHECK (bytes_done >= 0),
    bytes_total INTEGER CHECK (bytes_total >= 0),
    error_code TEXT,
    error_message TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    CHECK ((finished_at IS NULL) = (status IN ('pending', 'running'))),
    CHECK ((error_code IS NULL) = (error_message IS NULL))
);
-- One at a time for each version, whatever goes wrong in the code above it.
CREATE UNIQUE INDEX idx_operation_version_id_active ON operation (version_id)
WHERE status IN ('pending', 'running');
CREATE INDEX idx_operation_version_id ON operation (version_id);
CREATE INDEX idx_operation_model_id ON operation (model_id);
CREATE INDEX idx_operation_status ON operation (status);
CREATE INDEX idx_operation_created_at ON operation (created_at);
"""


def up(db: Database) -> None:
    """Create the table of operations."""
    db.executescript(_TABLES)


def down(db: Database) -> None:
    """Drop it; what it recorded is lost, models and versions are not touched."""
    db.execute("DROP TABLE operation")
