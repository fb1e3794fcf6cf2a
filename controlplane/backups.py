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
from sqlite_utils import Database

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
from controlplane.migrations import STEPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

log = structlog.get_logger(__name__)

FOLDER = "backups"
KEEP_AUTOMATIC = 5
_MB = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_AUTOMATIC = "before-"
_REPLACED = "replaced-"
# More than this many lines of one kind tell nothing new.
_MAX_FINDINGS = 20

STEP_NAMES = tuple(step.__name__.rpartition(".")[2] for step in STEPS)


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A finished copy. `schema` is its newest migration."""

    path: str
    bytes: int
    models: int
    events: int
    schema: str


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What is found in a database file.

    Attributes:
        steps: the migrations it has been through, oldest first.
        damage: why its content cannot be trusted; it is no backup then.
        faults: broken references and a schema that lacks something.
        strange: tables and indexes that are not ModelMora's.
    """

    steps: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()

    @property
    def unknown(self) -> list[str]:
        """Migrations that this ModelMora does not have."""
        return [step for step in self.steps if step not in STEP_NAMES]

    @property
    def missing(self) -> list[str]:
        """Migrations that the file has not been through yet."""
        return [step for step in STEP_NAMES if step not in self.steps]


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
    if name.startswith((_AUTOMATIC, _REPLACED)):
        raise ValidationFailed.field("name", f"must not begin with {_AUTOMATIC} or {_REPLACED}")
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


# -- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot change the file; the server may write to it meanwhile."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10.0)) as connection:
        yield connection


def inspect(path: Path) -> Inspection:
    """Check every page, key and index of a database file, and its schema.

    Raises:
        NoDatabase: there is no such file.
    """
    if not path.is_file():
        raise NoDatabase(str(path))
    try:
        with read_only(path) as connection:
            steps = _steps(connection)
            if damage := _integrity(connection):
                return Inspection(steps=tuple(steps), damage=tuple(damage))
            if not steps:
                return Inspection(damage=("it is no database of ModelMora",))
            faults, strange = _foreign_keys(connection), list[str]()
            if set(steps) <= set(STEP_NAMES):
                wanted, there = _reference(steps), _objects(connection)
                strange = _described(there.keys() - wanted, "is not ModelMora's")
                faults += _described(wanted.keys() - there, "is missing")
                both = wanted.keys() & there
                differing = {key for key in both if wanted[key] != there[key]}
                faults += _described(differing, "is not as it should be")
    except sqlite3.Error as error:
        return Inspection(damage=(f"it cannot be read ({error})",))
    return Inspection(steps=tuple(steps), faults=tuple(faults), strange=tuple(strange))


def _steps(connection: sqlite3.Connection) -> list[str]:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    if ("_sqlite_migrations",) not in tables:
        return []
    rows = connection.execute(
        "SELECT name FROM _sqlite_migrations WHERE migration_set = 'modelmora' ORDER BY rowid"
    )
    return [row[0] for row in rows]


def _integrity(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({_MAX_FINDINGS})").fetchall()
    return [f"integrity: {row[0]}" for row in rows if row[0] != "ok"]


def _foreign_keys(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("PRAGMA foreign_key_check").fetchmany(_MAX_FINDINGS)
    return [
        f"foreign key: row {row[1]} of {row[0]} refers to a {row[2]} that is not" for row in rows
    ]


def _described(objects: Iterable[tuple[str, str]], how: str) -> list[str]:
    return [f"schema: {kind} {name} {how}" for kind, name in sorted(objects)]


def _reference(steps: list[str]) -> dict[tuple[str, str], str]:
    """What the steps, in the order in which the file went through them, make of nothing."""
    with contextlib.closing(Database(memory=True)) as db:
        for name in steps:
            STEPS[STEP_NAMES.index(name)].up(db)
        return _objects(db.conn)


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Tables by their columns, the rest by their text without spaces and quotes.

    The text of a table depends on how it came about: ALTER TABLE leaves traces in it.
    """
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {
        (kind, name): _columns(connection, name) if kind == "table" else _condensed(sql)
        for kind, name, sql in rows
        if sql and not name.startswith(("sqlite_", "_sqlite_", "idx__sqlite_"))
    }


def _columns(connection: sqlite3.Connection, table: str) -> str:
    rows = connection.execute('SELECT name, type, "notnull", pk FROM pragma_table_info(?)', [table])
    return str(sorted(rows.fetchall()))


def _condensed(sql: str) -> str:
    return "".join(sql.replace('"', "").split()).lower()


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


def newer(path: Path | str, steps: tuple[str, ...] | list[str]) -> str:
    """What to do with a database of a newer schema."""
    unknown = [step for step in steps if step not in STEP_NAMES]
    known = [step for step in steps if step in STEP_NAMES]
    back = f"modelmora db downgrade --to {known[-1]}" if known else "modelmora db downgrade"
    return (
        f"The database {path} was written by a newer ModelMora (it has {', '.join(unknown)}). "
        f"With that version, run: {back} -- or restore the backup that was made before its "
        f"migration ({FOLDER}/{_AUTOMATIC}{unknown[0]}-….db): modelmora db restore FILE -- "
        "or choose another MODELMORA_DATA_DIR."
    )
