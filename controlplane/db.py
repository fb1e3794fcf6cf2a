"""The database: one SQLite file, opened once, used from one thread.

WAL with `synchronous=FULL`: what was committed survives a power cut. Schema changes are the
numbered steps of `controlplane/migrations`, applied and recorded by sqlite-utils' migrations; the
way back (`migrate_down`) is ours, since the library has none.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from controlplane.backups import FOLDER, RESCUED, before_migration
from controlplane.database_file import newer
from controlplane.database_watch import WatchedConnection, check
from controlplane.errors import (
    InsufficientDisk,
    NoDatabase,
    ServiceUnavailable,
    StartupError,
    ValidationFailed,
)
from controlplane.migrations import STEPS
from controlplane.moments import from_text as from_text  # had from here too, by whoever keeps rows
from controlplane.moments import to_text as to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controlplane.events import DomainEvent, EventBus

log = structlog.get_logger(__name__)

BUSY_TIMEOUT_SECONDS = 10.0
_MB = 1024 * 1024

_MIGRATIONS = Migrations("modelmora")
_DOWN = {}
for _step in STEPS:
    _name = _step.__name__.rpartition(".")[2]
    _MIGRATIONS(name=_name)(_step.up)
    _DOWN[_name] = _step.down


def open_db(path: Path | str) -> Database:
    """Open (or create) the database and bring it to the newest schema.

    Args:
        path: the file, or ":memory:".

    Raises:
        StartupError: the file cannot be created or written, is no database, is damaged, or was
            written by a newer ModelMora; the message names the file and says what to do.
    """
    db = None
    try:
        connection = _connect(path)
        db = Database(connection)
        _configure(db, in_memory=str(path) == ":memory:")
        _refuse_newer_schema(db, path)
        _check(db, path)
        _back_up_before_migration(db, path)
        migrate_up(db)
        if str(path) != ":memory:":
            connection.watch(Path(path))
    except BaseException as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise _startup_error(path, error) from error
        raise
    return db


def _connect(path: Path | str) -> WatchedConnection:
    if str(path) != ":memory:":
        _refuse_after_rescue(Path(path))
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(
                f"The data directory {Path(path).parent} cannot be created: {error.strerror}. "
                "Choose another with MODELMORA_DATA_DIR."
            ) from error
    # isolation_level None: transactions begin and end where this module says, never implicitly.
    return sqlite3.connect(
        str(path),
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        factory=WatchedConnection,
    )


def _refuse_after_rescue(path: Path) -> None:
    """An empty registry in the place of one that was lost would have its artefacts removed."""
    rescued = sorted((path.parent / FOLDER).glob(f"{RESCUED}*.db"))
    if rescued and not path.exists():
        raise StartupError(
            f"The database {path} was removed while ModelMora ran. What it held is in "
            f"{rescued[-1]}: modelmora db restore {rescued[-1]}. To start with an empty registry "
            "instead, delete that file."
        )


def _configure(db: Database, *, in_memory: bool) -> None:
    if not in_memory:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")


def _refuse_newer_schema(db: Database, path: Path | str) -> None:
    applied = applied_steps(db)
    if not set(applied) <= _DOWN.keys():
        raise StartupError(newer(path, applied))


def _back_up_before_migration(db: Database, path: Path | str) -> None:
    pending = [step.name for step in _MIGRATIONS.pending(db)]
    if applied_steps(db) and pending and str(path) != ":memory:":
        before_migration(Path(path), pending[0])


def _check(db: Database, path: Path | str) -> None:
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise StartupError(_damaged(path, verdict))


def _damaged(path: Path | str, what: str) -> str:
    return (
        f"The database {path} is damaged or not a database ({what}). Restore it from a backup, or "
        "move it away to start with an empty registry."
    )


def _startup_error(path: Path | str, error: sqlite3.Error) -> StartupError:
    text = str(error)
    if "readonly" in text or "unable to open" in text or "disk I/O" in text:
        return StartupError(
            f"The database {path} cannot be opened for writing ({text}). Check the file's and its "
            "directory's permissions, or choose another directory with MODELMORA_DATA_DIR."
        )
    if "locked" in text:
        return StartupError(
            f"The database {path} is in use by another process ({text}). Stop that one first."
        )
    if "full" in text:
        return StartupError(f"The database {path} cannot grow: the disk is full.")
    if isinstance(error, sqlite3.OperationalError):
        return StartupError(f"The database {path} cannot be used: {text}.")
    return StartupError(_damaged(path, text))


def applied_steps(db: Database) -> list[str]:
    """Names of the migrations the database has been through, oldest first."""
    return [step.name for step in _MIGRATIONS.applied(db)]


def migrate_up(db: Database) -> list[str]:
    """Apply the steps that are missing, each in its own transaction; their names.

    Raises:
        sqlite3.Error: from the step that failed; that step left nothing behind.
    """
    missing = [step.name for step in _MIGRATIONS.pending(db)]
    if missing:
        _MIGRATIONS.apply(db)
        log.info("database migrated", steps=missing)
    return missing


def downgrade(path: Path, *, to: str) -> tuple[list[str], Path]:
    """Take the newest steps of a database file back, after a backup; hold `server_stopped`.

    Returns:
        The steps that were taken back, newest first, and the backup.

    Raises:
        NoDatabase: there is no such file.
        StartupError: it is damaged or of a newer schema, or no backup could be made.
        ValidationFailed: `to` is no step that it has been through.
    """
    if not path.is_file():
        raise NoDatabase(str(path))
    db = Database(_connect(path))
    try:
        _configure(db, in_memory=False)
        _refuse_newer_schema(db, path)
        _check(db, path)
        applied = applied_steps(db)
        if to not in applied:
            known = ", ".join(applied) or "none"
            raise ValidationFailed.field("to", f"must be one of the steps it has: {known}")
        kept = before_migration(path, f"downgrade-to-{to}")
        return migrate_down(db, to=to), kept
    except sqlite3.Error as error:
        raise _startup_error(path, error) from error
    finally:
        db.close()


def migrate_down(db: Database, *, to: str | None = None) -> list[str]:
    """Take steps back, newest first, each in its own transaction; their names.

    Args:
        to: name of the step to stop at (it stays); None takes all back.

    Raises:
        ValueError: when `to` was never applied.
    """
    applied = applied_steps(db)
    if to is not None and to not in applied:
        raise ValueError(f"{to} is not among the applied steps: {', '.join(applied) or 'none'}")
    keep = applied.index(to) + 1 if to is not None else 0
    undone = list(reversed(applied[keep:]))
    for name in undone:
        with transaction(db):
            _DOWN[name](db)
            db.execute(
                "DELETE FROM _sqlite_migrations WHERE migration_set = ? AND name = ?",
                [_MIGRATIONS.name, name],
            )
    return undone


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """All or nothing: commits at the end, rolls back on any exception.

    It takes the write lock at its beginning, so that what is read inside is still true when it is
    written; a transaction within a transaction is part of the outer one.

    Raises:
        InsufficientDisk: the disk is full.
        DatabaseUnusable: the file was damaged, replaced or removed since it was opened.
        ServiceUnavailable: another process holds the lock, or the file cannot be written.
    """
    check(db.conn)  # first of all: a query that met damage may have left a savepoint open
    if db.conn.in_transaction:
        yield
        return
    try:
        db.conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.conn.execute("COMMIT")
        except BaseException:
            db.rollback()
            raise
    except sqlite3.OperationalError as error:
        raise _operational(db, error) from error


@contextmanager
def recorded_change(
    db: Database, bus: EventBus, *, committed: Callable[[], None] = lambda: None
) -> Iterator[list[DomainEvent]]:
    """One change: the rows and the events written inside the block, or none of them.

    Args:
        committed: called before listeners run, which may ask for what has just changed.
    """
    events: list[DomainEvent] = []
    with transaction(db):
        yield events
        for event in events:
            append_event(db, event)
    committed()
    for event in events:
        bus.publish(event)


def _operational(db: Database, error: sqlite3.OperationalError) -> Exception:
    file = Path(db.execute("PRAGMA database_list").fetchone()[2] or ".")
    if "full" in str(error):
        free = shutil.disk_usage(file.parent).free
        return InsufficientDisk(str(file.parent), needed_mb=1, free_mb=free / _MB)
    if any(word in str(error) for word in ("locked", "readonly", "disk I/O")):
        return ServiceUnavailable(f"The database cannot be written now: {error}.")
    return error


def append_event(db: Database, event: DomainEvent) -> None:
    """Write an event to the event store; events that are for listeners only are left out.

    Call it inside the transaction of the change the event tells of.
    """
    if not event.stored:
        return
    db.execute(
        "INSERT INTO event_store (event_id, event_type, aggregate_id, aggregate_type, payload,"
        " timestamp, version) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            event.event_id,
            event.event_type,
            event.aggregate_id,
            event.aggregate_type,
            json.dumps(event.payload(), ensure_ascii=False),
            to_text(event.timestamp),
            event.schema_version,
        ],
    )
