"""What a database file is: its schema, whether it is sound, and what to do when it is newer."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import msgspec
from sqlite_utils import Database

from controlplane.errors import NoDatabase
from controlplane.migrations import STEPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

STEP_NAMES = tuple(step.__name__.rpartition(".")[2] for step in STEPS)
# More lines than this of one kind tell nothing new.
_MAX_FINDINGS = 20


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


def newer(path: Path | str, steps: tuple[str, ...] | list[str]) -> str:
    """What to do with a database of a newer schema."""
    unknown = [step for step in steps if step not in STEP_NAMES]
    known = [step for step in steps if step in STEP_NAMES]
    back = f"modelmora db downgrade --to {known[-1]}" if known else "modelmora db downgrade"
    return (
        f"The database {path} was written by a newer ModelMora (it has {', '.join(unknown)}). "
        f"With that version, run: {back} -- or restore the backup that was made before its "
        f"migration (backups/before-{unknown[0]}-….db): modelmora db restore FILE -- "
        "or choose another MODELMORA_DATA_DIR."
    )
