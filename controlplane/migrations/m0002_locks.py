"""Locks, their entries and revisions; the digests of versions' source files (domain §2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_TABLES = """
ALTER TABLE model_version ADD COLUMN source_files TEXT
    CHECK (source_files IS NULL OR json_valid(source_files));

CREATE TABLE model_lock (
    id TEXT PRIMARY KEY CHECK (length(id) = 36),
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    description TEXT CHECK (length(description) <= 1000),
    environment TEXT NOT NULL CHECK (length(environment) BETWEEN 1 AND 50),
    active INTEGER NOT NULL DEFAULT 1 CHECK (active IN (0, 1)),
    generated_at TEXT NOT NULL,
    created_by TEXT CHECK (length(created_by) BETWEEN 1 AND 255),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    version_number INTEGER NOT NULL DEFAULT 1 CHECK (version_number >= 1)
);
CREATE INDEX idx_model_lock_name ON model_lock (name);
CREATE INDEX idx_model_lock_environment ON model_lock (environment);
CREATE INDEX idx_model_lock_created_at ON model_lock (created_at);

-- model_id is the text form and references nothing: a lock may outlive its models.
CREATE TABLE locked_model_entry (
    lock_id TEXT NOT NULL REFERENCES model_lock (id) ON DELETE CASCADE,
    model_id TEXT NOT NULL CHECK (length(model_id) BETWEEN 3 AND 255 AND model_id LIKE '%_/_%'),
    version TEXT NOT NULL CHECK (length(version) BETWEEN 1 AND 100),
    revision TEXT,
    checksum TEXT NOT NULL CHECK (length(checksum) = 71 AND checksum GLOB 'sha256:*'),
    files TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(files)),
    artifact_uri TEXT NOT NULL CHECK (length(artifact_uri) >= 1),
    source_url TEXT CHECK (length(source_url) >= 1),
    task_type TEXT NOT NULL,
    resource_requirements TEXT NOT NULL CHECK (json_valid(resource_requirements)),
    converter TEXT CHECK (converter IS NULL OR json_valid(converter)),
    artefact_checksum TEXT,
    PRIMARY KEY (lock_id, model_id)
);
CREATE INDEX idx_locked_model_entry_lock_id ON locked_model_entry (lock_id);
CREATE INDEX idx_locked_model_entry_model_id ON locked_model_entry (model_id);

CREATE TRIGGER locked_model_entry_immutable BEFORE UPDATE ON locked_model_entry
BEGIN
    SELECT RAISE(ABORT, 'an entry of a lock is a snapshot and never changes');
END;

-- What a lock said at each of its versions, for rollback and audit; content is a JSON document.
CREATE TABLE model_lock_revision (
    lock_id TEXT NOT NULL REFERENCES model_lock (id) ON DELETE CASCADE,
    version_number INTEGER NOT NULL CHECK (version_number >= 1),
    content TEXT NOT NULL CHECK (json_valid(content)),
    created_at TEXT NOT NULL,
    PRIMARY KEY (lock_id, version_number)
);
CREATE INDEX idx_model_lock_revision_lock_id ON model_lock_revision (lock_id);
"""


def up(db: Database) -> None:
    """Create the tables of locks, and the place for a version's file digests."""
    db.executescript(_TABLES)


def down(db: Database) -> None:
    """Drop them, children first; the digests stay in the downloads' own records."""
    for table in ("model_lock_revision", "locked_model_entry", "model_lock"):
        db.execute(f"DROP TABLE {table}")
    db.execute("ALTER TABLE model_version DROP COLUMN source_files")
