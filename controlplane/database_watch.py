"""The database while it is served: is it still the file that was opened, and sound?

SQLite sees damage only in the pages that it reads. Of a file that was deleted or replaced it sees
nothing: it goes on with the one it has open, which nobody will find again ("How To Corrupt An
SQLite Database File", section 4). So the file is looked at before each change and every few
seconds, and all of its pages now and then. What was found once stays true until a restart: reading
goes on where it can, nothing is written any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from controlplane.backups import FOLDER, RESCUED, stamp
from controlplane.database_file import read_only
from controlplane.errors import DatabaseUnusable, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

log = structlog.get_logger(__name__)

LOOK_EVERY = 5.0  # seconds
SCRUB_EVERY = 600.0  # seconds; it reads the whole file
# What SQLite says when pages are not what they should be (SQLITE_CORRUPT, SQLITE_NOTADB), and
# Python when a text is none. Their codes are to be had from Python 3.11 on only.
_DAMAGE = ("malformed", "not a database", "Could not decode")
_T = TypeVar("_T")


class _Cursor(sqlite3.Cursor):
    """A cursor whose failures are explained by its connection."""

    connection: WatchedConnection

    def execute(self, *args: Any) -> Self:
        return self._explained(super().execute, *args)

    def fetchone(self) -> Any:
        return self._explained(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._explained(super().fetchall)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.DatabaseError as error:
            raise self.connection.explain(error) from error

    def _explained(self, call: Callable[..., _T], *args: Any) -> _T:
        try:
            return call(*args)
        except sqlite3.DatabaseError as error:
            raise self.connection.explain(error) from error


class WatchedConnection(sqlite3.Connection):
    """A connection that knows, once `watch` was called, when its file cannot be used any more.

    Attributes:
        fault: what was found; None while all is well.
    """

    fault: DatabaseUnusable | None = None
    _path: Path | None = None
    _file: tuple[int, int] | None = None

    def watch(self, path: Path) -> None:
        """From now on the file at `path` is the one that was opened."""
        self._path, self._file = path.absolute(), _identity(path)

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(_Cursor if factory is None else factory)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def check(self) -> None:
        """Raises DatabaseUnusable when something was found, or the file is another one now."""
        if self.fault is None and self._path is not None and _identity(self._path) != self._file:
            gone = not self._path.exists()
            self.found("was removed" if gone else "was replaced", rescued=self._rescue())
        if self.fault is not None:
            raise self.fault

    def found(self, what: str, rescued: Path | None = None) -> DatabaseUnusable:
        """Take note of a fault and tell it once: how the file came to be of no use."""
        if self.fault is None:
            self.fault = DatabaseUnusable(str(self._path), what, str(rescued) if rescued else None)
            log.error(
                "the database cannot be used any more", error_code=self.fault.code,
                path=str(self._path), found=what, todo=self.fault.remedy,
            )  # fmt: skip
        return self.fault

    def explain(self, error: sqlite3.DatabaseError) -> Exception:
        """A failure of SQLite as a fact, where it is one of the file's; else as it is."""
        if self._path is None:
            return error
        if any(word in str(error) for word in _DAMAGE):
            return self.found(f"is damaged ({error})")
        if "disk I/O" in str(error) and not self.in_transaction:
            return ServiceUnavailable(f"The database cannot be read now: {error}.")
        return error

    def _rescue(self) -> Path | None:
        """Write what the open file holds to a backup: with this process it would be gone."""
        assert self._path is not None
        folder = self._path.parent / FOLDER
        target, partial = folder / f"{RESCUED}{stamp()}.db", folder / f".{RESCUED}partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(partial)) as copy:
                self.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE").fetchone()
            partial.rename(target)
        except (OSError, sqlite3.Error) as error:
            log.error("what the database held could not be rescued", error=str(error))  # noqa: TRY400
            return None
        return target

    def scrub(self) -> str | None:
        """Read all pages from the disk, with a connection of its own; what is wrong with them.

        Blocks; may run in a thread.
        """
        assert self._path is not None
        try:
            with read_only(self._path) as connection:
                verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        except sqlite3.DatabaseError as error:
            verdict = str(error)
            if not any(word in verdict for word in _DAMAGE):  # busy, out of memory
                return None
        return None if verdict == "ok" else " ".join(verdict.split())


async def keep_watch(
    connection: sqlite3.Connection, *, look: float = LOOK_EVERY, scrub: float = SCRUB_EVERY
) -> None:
    """Look at the file every `look` seconds, into it every `scrub`, until something is found."""
    if not isinstance(connection, WatchedConnection):
        return
    loop = asyncio.get_running_loop()
    last = loop.time()
    while connection.fault is None:
        await asyncio.sleep(look)
        with contextlib.suppress(DatabaseUnusable):
            connection.check()
            if loop.time() - last >= scrub:
                damage = await asyncio.to_thread(connection.scrub)
                last = loop.time()
                connection.check()  # what was read may have been another file
                if damage is not None:
                    connection.found(f"is damaged ({damage})")


def check(connection: sqlite3.Connection) -> None:
    """Raises DatabaseUnusable where `connection` is a watched one whose file is of no use."""
    if isinstance(connection, WatchedConnection):
        connection.check()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 before each change
    except OSError:
        return None
    return found.st_dev, found.st_ino
