"""A database file that changes under the open connection."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from controlplane.database_watch import WatchedConnection, check, keep_watch
from controlplane.db import open_db, transaction
from controlplane.errors import DatabaseUnusable, StartupError
from controlplane.events import EventBus
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlite_utils import Database


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "modelmora.db"


@pytest.fixture
def db(file: Path) -> Iterator[Database]:
    database = open_db(file)
    ModelStore(database, EventBus()).register(NewModel(model_id="a/b", task_type="txt2embed"))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    yield database
    database.close()


def rescued(file: Path) -> list[Path]:
    return list((file.parent / "backups").iterdir())


def replace(file: Path) -> None:
    with closing(sqlite3.connect(file.with_name("other"))) as other:
        other.execute("CREATE TABLE other (x)")
    file.with_name("other").replace(file)


def remove(file: Path) -> None:
    file.unlink()


def damage(file: Path) -> None:
    """All pages but the first, in place, behind SQLite's back."""
    with file.open("r+b") as handle:
        size = os.fstat(handle.fileno()).st_size
        handle.seek(4096)
        handle.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_nothing_is_written_to_a_file_that_is_not_there_any_more(
    file: Path, db: Database, how: str
) -> None:
    check(db.conn)
    if how == "removed":
        file.unlink()
    else:
        replace(file)
    store = ModelStore(db, EventBus())
    for _ in range(2):
        with pytest.raises(DatabaseUnusable, match=f"was {how}.*modelmora db restore .*rescued-"):
            store.register(NewModel(model_id="a/c", task_type="txt2embed"))
    assert not db.conn.in_transaction
    assert [model.model_id for model in store.every_model()] == ["a/b"]  # reading goes on
    (copy,) = rescued(file)
    with closing(open_db(copy)) as saved:
        assert [m.model_id for m in ModelStore(saved, EventBus()).every_model()] == ["a/b"]


def test_a_file_that_is_put_back_is_still_not_trusted(file: Path, db: Database) -> None:
    file.rename(file.with_name("away"))
    with pytest.raises(DatabaseUnusable):
        check(db.conn)
    file.with_name("away").rename(file)
    with pytest.raises(DatabaseUnusable):
        check(db.conn)


def test_a_copy_that_cannot_be_made_is_no_further_failure(file: Path, db: Database) -> None:
    (file.parent / "backups").write_text("in the way")
    file.unlink()
    with pytest.raises(DatabaseUnusable, match="modelmora db restore BACKUP"):
        check(db.conn)


def test_no_empty_registry_in_the_place_of_a_lost_one(file: Path, db: Database) -> None:
    for path in file.parent.glob("modelmora.db*"):
        path.unlink()
    with pytest.raises(DatabaseUnusable):
        check(db.conn)
    (copy,) = rescued(file)
    with pytest.raises(StartupError, match=f"modelmora db restore {copy}"):
        open_db(file)
    assert not file.exists()
    copy.unlink()
    open_db(file).close()


def test_damage_is_a_fact_wherever_it_is_met(file: Path, db: Database) -> None:
    damage(file)
    db.execute("PRAGMA shrink_memory").fetchone()  # what is in its cache is sound
    reading = (
        lambda: db.execute("SELECT * FROM event_store").fetchall(),
        lambda: db.execute("SELECT * FROM model").fetchone(),
        lambda: list(db.execute("SELECT * FROM model_version")),
        lambda: list(db.query("SELECT * FROM model")),
    )
    for read in reading:
        with pytest.raises(DatabaseUnusable, match="is damaged"):
            read()
    with pytest.raises(DatabaseUnusable), transaction(db):
        pytest.fail("no change is begun")


@pytest.mark.parametrize("column", ["config = 'no json'", "task_type = 'No task'"])
def test_a_row_that_was_never_written_so_is_damage(db: Database, column: str) -> None:
    db.execute("PRAGMA ignore_check_constraints = ON")
    db.execute(f"UPDATE model SET {column}")
    with pytest.raises(DatabaseUnusable, match="a row of model"):
        ModelStore(db, EventBus()).get("a/b")


def test_other_failures_stay_what_they_are(db: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        db.execute("SELECT * FROM nowhere")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO model_version (id) VALUES (NULL)")
    check(db.conn)


async def test_pages_that_nobody_asks_for_are_read_now_and_then(file: Path, db: Database) -> None:
    damage(file)
    await asyncio.wait_for(keep_watch(db.conn, look=0.01, scrub=0.02), 10)
    with pytest.raises(DatabaseUnusable, match="is damaged"):
        check(db.conn)


async def test_a_file_that_is_gone_is_noticed_without_a_request(file: Path, db: Database) -> None:
    remove(file)
    await asyncio.wait_for(keep_watch(db.conn, look=0.01), 10)
    assert len(rescued(file)) == 1


async def test_a_database_in_memory_needs_no_watch() -> None:
    with closing(open_db(":memory:")) as db:
        assert isinstance(db.conn, WatchedConnection)
        assert db.conn.fault is None
        check(db.conn)
        with closing(sqlite3.connect(":memory:")) as plain:
            await keep_watch(plain)
            check(plain)
