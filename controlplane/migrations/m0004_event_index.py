"""The event store as something to read from: a cursor, and an index for every filter (domain §6).

`sequence` is an explicit AUTOINCREMENT key: an implicit rowid may be given out again and is
renumbered by VACUUM, so that a reader that resumes by it would skip or repeat events. Every index
ends in it, as SQLite's indexes do, which makes "the events of X after N" one range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_COLUMNS = """
    event_type TEXT NOT NULL CHECK (length(event_type) BETWEEN 1 AND 255),
    aggregate_id TEXT NOT NULL,
    aggregate_type TEXT NOT NULL CHECK (length(aggregate_type) BETWEEN 1 AND 255),
    payload TEXT NOT NULL CHECK (json_valid(payload)),
    timestamp TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1)
"""
_NAMES = "event_id, event_type, aggregate_id, aggregate_type, payload, timestamp, version"
_INDEXES = """
CREATE INDEX idx_event_store_aggregate_id ON event_store (aggregate_id);
CREATE INDEX idx_event_store_event_type ON event_store (event_type);
CREATE INDEX idx_event_store_timestamp ON event_store (timestamp);
"""
_UP = f"""
CREATE TABLE event_store_new (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE CHECK (length(event_id) = 36),
    {_COLUMNS}
);
INSERT INTO event_store_new ({_NAMES}) SELECT {_NAMES} FROM event_store ORDER BY rowid;
DROP TABLE event_store;
ALTER TABLE event_store_new RENAME TO event_store;
{_INDEXES}
CREATE INDEX idx_event_store_model_id ON event_store (json_extract(payload, '$.model_id'));
"""
_DOWN = f"""
CREATE TABLE event_store_old (
    event_id TEXT PRIMARY KEY CHECK (length(event_id) = 36),
    {_COLUMNS}
);
INSERT INTO event_store_old ({_NAMES}) SELECT {_NAMES} FROM event_store ORDER BY sequence;
DROP TABLE event_store;
ALTER TABLE event_store_old RENAME TO event_store;
{_INDEXES}
"""


def up(db: Database) -> None:
    """Number the events in the order they were written in, and index the model they are about."""
    db.executescript(_UP)


def down(db: Database) -> None:
    """The table as it was; the events stay, in their order."""
    db.executescript(_DOWN)
