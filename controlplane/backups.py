"""Copies of the database that can be trusted, and the way back from one.

A copy is made by SQLite's online backup over a read-only connection of its own: one consistent
state, while the server (the only writer) goes on, and just as well when it is stopped. It is
checked before it gets its name: whatever has a backup's name is whole. A copy is one file that
needs no `-wal` beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sqlite3
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import filelock
import msgspec
import structlog

from controlplane.database_file import Inspection, inspect, newer, read_only
from controlplane.errors import (
    BackupExists,
    DatabaseDamaged,
    DatabaseInUse,
    InsufficientDisk,
    ModelMoraError,
    NoDatabase,
    StartupError,
    ValidationFailed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger(__name__)

FOLDER = "backups"
KEEP_AUTOMATIC = 5
_MB = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_AUTOMATIC = "before-"
_REPLACED = "replaced-"
RESCUED = "rescued-"


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A finished copy. `schema` is its newest migration."""

    path: str
    bytes: int
    models: int
    events: int
    schema: str


# -- writing -----------------------------------------------------------------------------------


def write_backup(database: Path, target: Path, *, replace: bool = False) -> Backup:
    """Copy the database to `target`, check the copy, and only then give it its name.

    Raises:
        NoDatabase: there is no such file.
        BackupExists: there is one of that name, and `replace` is not set.
        DatabaseDamaged: the database, and so its copy, is not sound; no copy is left.
        InsufficientDisk: no room.
        ValidationFailed: `target` cannot be written.
    """
    if not database.is_file():
        raise NoDatabase(str(database))
    if target.exists() and not replace:
        raise BackupExists(str(target))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with _writing(target, database):
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(database, partial)
            finished = _checked(partial, target)
            _publish(partial, target, replace=replace)
    finally:
        with contextlib.suppress(OSError):  # not there, nor anything else if its folder is not
            partial.unlink()
    return finished


@contextlib.contextmanager
def _writing(target: Path, database: Path) -> Iterator[None]:
    """Name what is in the way of writing `target`."""
    try:
        yield
    except sqlite3.Error as error:
        if "full" in str(error):
            raise _no_room(target, database) from error
        raise DatabaseDamaged(str(database), str(error)) from error
    except OSError as error:
        if target.exists():
            raise BackupExists(str(target)) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(target, database) from error
        text = f"{target} cannot be written: {error.strerror}"
        raise ValidationFailed.field("target", text) from error


def _no_room(target: Path, database: Path) -> InsufficientDisk:
    folder = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    return InsufficientDisk(str(folder), database.stat().st_size / _MB, free / _MB)


def _copy(database: Path, target: Path) -> None:
    with read_only(database) as source, contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
        # The copy inherits WAL; as a single file it can be read from a read-only medium too.
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
    _sync(target)


def _checked(copy: Path, target: Path) -> Backup:
    found = inspect(copy)
    _require_sound(found, target)
    with read_only(copy) as connection:
        counts = [_count(connection, table) for table in ("model", "event_store")]
    return Backup(
        path=str(target),
        bytes=copy.stat().st_size,
        models=counts[0],
        events=counts[1],
        schema=found.steps[-1] if found.steps else "",
    )


def _require_sound(found: Inspection, path: Path) -> None:
    if found.damage:
        raise DatabaseDamaged(str(path), "; ".join(found.damage[:3]))


def _count(connection: sqlite3.Connection, table: str) -> int:
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone()
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) if known else 0


def _publish(partial: Path, target: Path, *, replace: bool) -> None:
    if replace:
        partial.replace(target)
    else:
        os.link(partial, target)  # unlike a rename, it fails when the target is there
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def named(data_dir: Path, name: str | None) -> Path:
    """Where a backup of that name is kept; None makes a name of the time.

    Raises:
        ValidationFailed: it is no name for a file, or one of those made automatically.
    """
    name = f"manual-{stamp()}" if name is None else name.removesuffix(".db")
    if not _NAME.fullmatch(name):
        raise ValidationFailed.field("name", "must be 1 to 100 letters, digits, '.', '_' or '-'")
    reserved = (_AUTOMATIC, _REPLACED, RESCUED)
    if name.startswith(reserved):
        raise ValidationFailed.field("name", f"must not begin with {', '.join(reserved)}")
    return data_dir / FOLDER / f"{name}.db"


def stamp() -> str:
    """The present moment for file names; sorts in the order of time."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")


# -- before migrations ---------------------------------------------------------------------------


def before_migration(database: Path, what: str) -> Path:
    """Keep the database as it is before its schema changes; the last five such copies stay.

    Args:
        what: names the copy, such as the step that comes.

    Raises:
        StartupError: the copy could not be made; nothing was changed.
    """
    target = database.parent / FOLDER / f"{_AUTOMATIC}{what}-{stamp()}.db"
    try:
        write_backup(database, target)
    except ModelMoraError as error:
        raise StartupError(
            f"The database {database} has to be migrated, and no backup could be made before: "
            f"{error.message} Nothing was changed."
        ) from error
    log.info("database backed up before its migration", path=str(target))
    _keep_last(target.parent)
    return target


def _keep_last(folder: Path) -> None:
    automatic = sorted(folder.glob(f"{_AUTOMATIC}*.db"), key=lambda path: path.stat().st_mtime_ns)
    for path in automatic[:-KEEP_AUTOMATIC]:
        log.info("removing an old automatic backup", path=str(path))
        path.unlink(missing_ok=True)


# -- restoring -----------------------------------------------------------------------------------


@contextlib.contextmanager
def server_stopped(data_dir: Path, what: str) -> Iterator[None]:
    """Hold the data directory as a server would, so that none runs or starts meanwhile.

    Raises:
        DatabaseInUse: a server runs on it; `what` says what has to wait for it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(data_dir / "server.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise DatabaseInUse(str(data_dir), what) from None
    try:
        yield
    finally:
        lock.release()


def restore(backup: Path, database: Path) -> Path | None:
    """Put a checked copy of `backup` in the database's place; hold `server_stopped` for it.

    Killed at any line, either the old database or the new one is in place, whole.

    Returns:
        Where the replaced database is kept; None when there was none.

    Raises:
        NoDatabase, DatabaseDamaged: `backup` is not there or not sound.
        StartupError: it was written by a newer ModelMora.
        InsufficientDisk: no room.
    """
    found = inspect(backup)
    _require_sound(found, backup)
    if found.unknown:
        raise StartupError(newer(backup, found.steps))
    fresh = database.with_name(f"{database.name}.restoring")
    write_backup(backup, fresh, replace=True)
    kept = _set_aside(database) if database.exists() else None
    fresh.replace(database)
    _sync(database.parent)
    return kept


def _set_aside(database: Path) -> Path:
    """Keep the old database under another name too; it stays in place until it is replaced."""
    # A log of the old file beside the new one would be played into it: it is emptied first, or,
    # where the old file is too damaged for that, moved away with it.
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(database)) as connection,
    ):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    kept = database.parent / FOLDER / f"{_REPLACED}{stamp()}.db"
    kept.parent.mkdir(exist_ok=True)
    try:
        os.link(database, kept)
    except OSError:  # a file system without hard links
        shutil.copy2(database, kept)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            database.with_name(database.name + suffix).rename(kept.with_name(kept.name + suffix))
    _sync(kept.parent)
    return kept
