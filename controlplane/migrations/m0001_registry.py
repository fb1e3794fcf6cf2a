"""Catalog, models, versions, retired version strings and the event store (domain §2, §11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

DEFAULT_CATALOG_ID = "00000000-0000-4000-8000-000000000001"

_NOW = "strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000Z'"

_TABLES = f"""
CREATE TABLE model_catalog (
    id TEXT PRIMARY KEY CHECK (length(id) = 36),
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    version_number INTEGER NOT NULL DEFAULT 1 CHECK (version_number >= 1)
);

INSERT INTO model_catalog (id, name, created_at, updated_at)
VALUES ('{DEFAULT_CATALOG_ID}', 'default', {_NOW}, {_NOW});

CREATE TABLE model (
    id TEXT PRIMARY KEY CHECK (length(id) = 36),
    catalog_id TEXT NOT NULL REFERENCES model_catalog (id) ON DELETE CASCADE,
    model_id TEXT NOT NULL CHECK (length(model_id) BETWEEN 3 AND 255 AND model_id LIKE '%_/_%'),
    task_type TEXT NOT NULL CHECK (task_type IN (
        'txt2embed', 'txt2txt', 'txt2img', 'img2txt', 'img2embed', 'img2img', 'audio2txt',
        'txt2audio', 'classification', 'object_detection', 'question_answering')),
    current_version TEXT NOT NULL CHECK (length(current_version) BETWEEN 1 AND 100),
    display_name TEXT CHECK (length(display_name) BETWEEN 1 AND 255),
    description TEXT CHECK (length(description) BETWEEN 1 AND 1000),
    source_url TEXT CHECK (length(source_url) >= 1),
    config TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(config)),
    custom_params TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(custom_params)),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    version_number INTEGER NOT NULL DEFAULT 1 CHECK (version_number >= 1),
    UNIQUE (catalog_id, model_id)
);
CREATE INDEX idx_model_catalog_id ON model (catalog_id);
CREATE INDEX idx_model_model_id ON model (model_id);
CREATE INDEX idx_model_task_type ON model (task_type);
CREATE INDEX idx_model_created_at ON model (created_at);
CREATE INDEX idx_model_task_type_model_id ON model (task_type, model_id);

CREATE TABLE model_version (
    id TEXT PRIMARY KEY CHECK (length(id) = 36),
    model_id TEXT NOT NULL REFERENCES model (id) ON DELETE CASCADE,
    version TEXT NOT NULL CHECK (length(version) BETWEEN 1 AND 100),
    status TEXT NOT NULL DEFAULT 'registered' CHECK (status IN (
        'registered', 'downloading', 'exporting', 'ready', 'failed')),
    triton_version INTEGER NOT NULL CHECK (triton_version >= 1),
    revision TEXT,
    checksum TEXT CHECK (length(checksum) = 71 AND checksum GLOB 'sha256:*'),
    artifact_uri TEXT,
    framework TEXT NOT NULL DEFAULT 'pytorch' CHECK (framework IN (
        'pytorch', 'tensorflow', 'jax', 'onnx')),
    framework_version TEXT CHECK (length(framework_version) BETWEEN 1 AND 50),
    backend TEXT,
    engine TEXT,
    resource_requirements TEXT CHECK (
        resource_requirements IS NULL OR json_valid(resource_requirements)),
    requirements_declared INTEGER NOT NULL DEFAULT 0 CHECK (requirements_declared IN (0, 1)),
    measured_memory_mb REAL CHECK (measured_memory_mb >= 0),
    artefact_bytes INTEGER CHECK (artefact_bytes >= 0),
    artefact_checksum TEXT,
    artefact TEXT CHECK (artefact IS NULL OR json_valid(artefact)),
    error_message TEXT,
    metadata TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(metadata)),
    created_by TEXT CHECK (length(created_by) BETWEEN 1 AND 255),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    version_number INTEGER NOT NULL DEFAULT 1 CHECK (version_number >= 1),
    UNIQUE (model_id, version),
    UNIQUE (model_id, triton_version),
    CHECK (status <> 'ready' OR (
        checksum IS NOT NULL AND artifact_uri IS NOT NULL AND artefact IS NOT NULL
        AND backend IS NOT NULL AND resource_requirements IS NOT NULL))
);
CREATE INDEX idx_model_version_model_id ON model_version (model_id);
CREATE INDEX idx_model_version_checksum ON model_version (checksum);
CREATE INDEX idx_model_version_status ON model_version (status);
CREATE INDEX idx_model_version_created_at ON model_version (created_at);
CREATE INDEX idx_model_version_version_status ON model_version (version, status);

CREATE TRIGGER model_version_pin_immutable BEFORE UPDATE OF checksum, artifact_uri ON model_version
WHEN (OLD.checksum IS NOT NULL AND OLD.checksum IS NOT NEW.checksum)
    OR (OLD.artifact_uri IS NOT NULL AND OLD.artifact_uri IS NOT NEW.artifact_uri)
BEGIN
    SELECT RAISE(ABORT, 'checksum and artifact_uri of a version never change');
END;

-- Outlives the models: version strings and Triton version numbers are never used again.
-- model_id is the text form here, since the model's row is gone.
CREATE TABLE retired_version (
    model_id TEXT NOT NULL,
    version TEXT NOT NULL,
    triton_version INTEGER NOT NULL CHECK (triton_version >= 1),
    checksum TEXT,
    retired_at TEXT NOT NULL,
    PRIMARY KEY (model_id, triton_version)
);
CREATE INDEX idx_retired_version_version ON retired_version (model_id, version);

CREATE TABLE event_store (
    event_id TEXT PRIMARY KEY CHECK (length(event_id) = 36),
    event_type TEXT NOT NULL CHECK (length(event_type) BETWEEN 1 AND 255),
    aggregate_id TEXT NOT NULL,
    aggregate_type TEXT NOT NULL CHECK (length(aggregate_type) BETWEEN 1 AND 255),
    payload TEXT NOT NULL CHECK (json_valid(payload)),
    timestamp TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1)
);
CREATE INDEX idx_event_store_aggregate_id ON event_store (aggregate_id);
CREATE INDEX idx_event_store_event_type ON event_store (event_type);
CREATE INDEX idx_event_store_timestamp ON event_store (timestamp);
"""


def up(db: Database) -> None:
    """Create the registry's tables and the `default` catalog."""
    db.executescript(_TABLES)


def down(db: Database) -> None:
    """Drop them, children first, so that no foreign key is broken on the way."""
    for table in ("event_store", "retired_version", "model_version", "model", "model_catalog"):
        db.execute(f"DROP TABLE {table}")
