"""Operations on locks beside installations: a sync or a verification has a lock, and no version."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_KEPT = (
    "id, kind, model_id, version, version_id, status, attempts, phase, step, message, fraction,"
    " bytes_done, bytes_total, error_code, error_message, created_at, updated_at, started_at,"
    " finished_at"
)
# SQLite cannot change a CHECK: the table is made anew. `work` is a JSON document: the lock's name,
# id and version, what was asked for, the steps and what they came to.
_OLD_SUBJECT = """
    kind TEXT NOT NULL CHECK (kind IN ('install')),
    model_id TEXT NOT NULL CHECK (length(model_id) BETWEEN 3 AND 255),
    version TEXT NOT NULL CHECK (length(version) BETWEEN 1 AND 100),
    version_id TEXT NOT NULL CHECK (length(version_id) = 36),
"""
_NEW_SUBJECT = """
    kind TEXT NOT NULL CHECK (kind IN ('install', 'sync', 'verify')),
    model_id TEXT CHECK (length(model_id) BETWEEN 3 AND 255),
    version TEXT CHECK (length(version) BETWEEN 1 AND 100),
    version_id TEXT CHECK (length(version_id) = 36),
    work TEXT CHECK (work IS NULL OR json_valid(work)),
"""
_NEW_CHECKS = """,
    CHECK ((kind = 'install') = (model_id IS NOT NULL)),
    CHECK ((kind = 'install') = (version IS NOT NULL)),
    CHECK ((kind = 'install') = (version_id IS NOT NULL)),
    CHECK ((kind = 'install') = (work IS NULL))
"""
_INDEXES = (
    "CREATE UNIQUE INDEX idx_operation_version_id_active ON operation (version_id)"
    " WHERE status IN ('pending', 'running')",
    "CREATE INDEX idx_operation_version_id ON operation (version_id)",
    "CREATE INDEX idx_operation_model_id ON operation (model_id)",
    "CREATE INDEX idx_operation_status ON operation (status)",
    "CREATE INDEX idx_operation_created_at ON operation (created_at)",
)


def _table(subject: str, checks: str) -> str:
    return f"""
CREATE TABLE operation_anew (
    id TEXT PRIMARY KEY CHECK (length(id) = 36),
    {subject}
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
    CHECK ((error_code IS NULL) = (error_message IS NULL)){checks}
)"""


def _make_anew(db: Database, table: str) -> None:
    # statement by statement: a script would end the step's transaction
    db.execute(table)
    kept = f"SELECT {_KEPT} FROM operation WHERE kind = 'install'"
    db.execute(f"INSERT INTO operation_anew ({_KEPT}) {kept}")
    db.execute("DROP TABLE operation")
    db.execute("ALTER TABLE operation_anew RENAME TO operation")
    for index in _INDEXES:
        db.execute(index)


def up(db: Database) -> None:
    """Let operations be of other kinds than `install`."""
    _make_anew(db, _table(_NEW_SUBJECT, _NEW_CHECKS))


def down(db: Database) -> None:
    """Keep installations only; what syncs did stays done, their records are lost."""
    _make_anew(db, _table(_OLD_SUBJECT, ""))
