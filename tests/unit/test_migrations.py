"""Opening the database: migrations up and down, transactions, and files that are no database."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import pytest
from sqlite_utils.migrations import Migrations

from controlplane.db import (
    append_event,
    applied_steps,
    migrate_down,
    migrate_up,
    open_db,
    transaction,
)
from controlplane.errors import InsufficientDisk, ServiceUnavailable, StartupError
from controlplane.events import EventBus, InferenceFinished, ModelUnregistered, utc_now
from controlplane.moments import from_text, to_text
from controlplane.registry.model import NewModel, TaskType
from controlplane.registry.store import ModelStore
from tests.plugins import knowing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlite_utils import Database

REGISTRY = {"model_catalog", "model", "model_version", "retired_version", "event_store"}
LOCKS = {"model_lock", "locked_model_entry", "model_lock_revision"}
TABLES = REGISTRY | LOCKS | {"operation", "memory_history"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "modelmora.db"


@pytest.fixture
def db(file: Path) -> Iterator[Database]:
    database = open_db(file)
    yield database
    database.close()


def test_a_new_database_has_all_tables_and_the_default_catalog(db: Database) -> None:
    assert set(db.table_names()) >= TABLES
    assert [row["name"] for row in db["model_catalog"].rows] == ["default"]


def test_the_database_loses_nothing_and_checks_references(db: Database) -> None:
    def pragma(name: str) -> object:
        return db.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2  # FULL
    assert pragma("foreign_keys") == 1
    assert pragma("busy_timeout") == 10_000


def test_every_index_is_named_after_its_table_and_columns(db: Database) -> None:
    names = {
        row[0]
        for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
        if not row[0].startswith(("sqlite_", "idx__sqlite_migrations"))
    }
    assert names
    for table in TABLES:
        names -= {name for name in names if name.startswith(f"idx_{table}_")}
    assert names == set()


def test_every_foreign_key_has_an_index(db: Database) -> None:
    for table in TABLES:
        indexed = {index.columns[0] for index in db[table].indexes}
        assert {key.column for key in db[table].foreign_keys} <= indexed


def test_migrating_down_and_up_leaves_an_empty_registry(db: Database) -> None:
    ModelStore(db, EventBus()).register(NewModel(model_id="a/b", task_type="txt2embed"))
    steps = applied_steps(db)
    assert migrate_down(db) == list(reversed(steps))
    assert not TABLES & set(db.table_names())
    assert migrate_up(db) == steps
    assert db["model"].count == 0
    ModelStore(db, EventBus()).register(NewModel(model_id="a/b", task_type="txt2embed"))


def test_migrating_down_to_the_newest_step_changes_nothing(db: Database) -> None:
    ModelStore(db, EventBus()).register(NewModel(model_id="a/b", task_type="txt2embed"))
    assert migrate_down(db, to=applied_steps(db)[-1]) == []
    assert db["model"].count == 1
    with pytest.raises(ValueError, match="m9999"):
        migrate_down(db, to="m9999")


def test_a_step_down_that_fails_leaves_everything(db: Database) -> None:
    ModelStore(db, EventBus()).register(NewModel(model_id="a/b", task_type="txt2embed"))
    migrate_down(db, to="m0001_registry")
    db.execute("DROP TABLE event_store")
    with pytest.raises(sqlite3.OperationalError):
        migrate_down(db)
    assert db["model"].count == 1
    assert applied_steps(db)[0] == "m0001_registry"


def test_opening_again_keeps_the_data(file: Path) -> None:
    first = open_db(file)
    ModelStore(first, EventBus()).register(NewModel(model_id="a/b", task_type="txt2embed"))
    first.close()
    second = open_db(file)
    assert ModelStore(second, EventBus()).get("a/b").model_id == "a/b"
    second.close()


def test_a_newer_schema_is_refused_with_instructions(file: Path, db: Database) -> None:
    newer = Migrations("modelmora")
    newer(name="m9999_later")(lambda database: None)
    newer.apply(db)
    with pytest.raises(
        StartupError, match=r"newer ModelMora.*m9999_later.*db downgrade --to m\d{4}_"
    ):
        open_db(file)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 90])
def test_a_file_that_is_no_database_is_named(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(StartupError, match=str(file)):
        open_db(file)
    assert file.read_bytes() == content


def test_a_damaged_database_is_named(file: Path) -> None:
    database = open_db(file)
    store = ModelStore(database, EventBus())
    for number in range(50):
        store.register(NewModel(model_id=f"a/b{number}", task_type="txt2embed"))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(file.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    file.write_bytes(content)
    with pytest.raises(StartupError, match=f"{file} is damaged"):
        open_db(file)


def test_a_directory_in_the_file_s_place_is_named(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(StartupError, match=r"cannot be opened.*MODELMORA_DATA_DIR"):
        open_db(file)


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(StartupError, match=r"cannot be created.*MODELMORA_DATA_DIR"):
        open_db(tmp_path / "data" / "modelmora.db")


# -- transactions --------------------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_nothing(db: Database) -> None:
    event = ModelUnregistered(aggregate_id="x", model_id="a/b")

    def fail() -> None:
        with transaction(db):
            append_event(db, event)
            append_event(db, event)  # the same id again

    with pytest.raises(sqlite3.IntegrityError):
        fail()
    assert db["event_store"].count == 0


def test_a_transaction_within_one_is_part_of_it(db: Database) -> None:
    event = ModelUnregistered(aggregate_id="x", model_id="a/b")

    def fail() -> None:
        with transaction(db):
            with transaction(db):
                append_event(db, event)
            append_event(db, event)

    with pytest.raises(sqlite3.IntegrityError):
        fail()
    assert db["event_store"].count == 0


def test_a_database_held_by_another_process_is_unavailable(file: Path, db: Database) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(ServiceUnavailable, match="locked"), transaction(db):
        pass
    other.execute("ROLLBACK")
    other.close()
    with transaction(db):
        pass


def test_a_full_disk_is_told_and_nothing_is_half_written(db: Database) -> None:
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    store = ModelStore(db, EventBus())

    def fill() -> None:
        for number in range(1000):
            store.register(NewModel(model_id=f"a/b{number}", task_type="txt2embed"))

    with pytest.raises(InsufficientDisk):
        fill()
    db.execute("PRAGMA max_page_count = 1000000")
    models = db["model"].count
    assert 0 < models < 1000
    assert db["model_version"].count == models
    assert db["event_store"].count == 2 * models


# -- events ----------------------------------------------------------------------------------------


def test_an_event_is_stored_with_its_envelope(db: Database) -> None:
    event = ModelUnregistered(aggregate_id="x", model_id="a/ü")
    append_event(db, event)
    (row,) = db["event_store"].rows
    assert json.loads(row.pop("payload")) == {"model_id": "a/ü"}
    assert row == {
        "sequence": 1,
        "event_id": event.event_id,
        "event_type": "model.unregistered",
        "aggregate_id": "x",
        "aggregate_type": "model_catalog",
        "timestamp": to_text(event.timestamp),
        "version": 1,
    }
    assert from_text(row["timestamp"]) == event.timestamp


def test_events_of_single_requests_are_not_stored(db: Database) -> None:
    append_event(
        db,
        InferenceFinished(
            model_id="a/b", task_type="txt2embed", protocol="http", status="success",
            duration_seconds=0.1,
        ),
    )  # fmt: skip
    assert db["event_store"].count == 0


def test_times_sort_as_text() -> None:
    now = utc_now()
    assert to_text(now).endswith("Z")
    assert len(to_text(now)) == len(to_text(now.replace(microsecond=0)))


# -- single steps --------------------------------------------------------------------------------


def test_the_task_custom_comes_and_goes_with_its_models(db: Database) -> None:
    store = ModelStore(db, EventBus())
    store.register(NewModel(model_id="a/embed", task_type="txt2embed"))
    store.register(NewModel(model_id="a/own", task_type="custom", source_url="/srv/own"))
    store.set_pinned("a/embed", pinned=True)
    migrate_down(db, to="m0007_current_status")
    rows = db.execute("SELECT model_id, task_type, pinned, current_status FROM model").fetchall()
    assert rows == [("a/embed", "txt2embed", 1, "registered")]
    assert [row[0] for row in db.execute("SELECT DISTINCT model_id FROM model_version")] == [
        db.execute("SELECT id FROM model").fetchone()[0]
    ]
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute("UPDATE model SET task_type = 'custom'")
    migrate_up(db)
    store = ModelStore(db, EventBus())
    assert store.get("a/embed").pinned
    store.register(NewModel(model_id="a/own", task_type="custom", source_url="/srv/own"))
    assert store.get("a/own").task_type == "custom"
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute("UPDATE model SET task_type = 'Cooking!'")
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []


def test_tasks_of_plugins_come_and_go_with_their_models(db: Database) -> None:
    store = ModelStore(db, EventBus())
    store.register(NewModel(model_id="a/own", task_type="custom", source_url="/srv/own"))
    with knowing({"echo": None}):
        store.register(NewModel(model_id="a/echo", task_type="echo"))
    assert store.get("a/echo").task_type is TaskType("echo")  # whose plugin is gone
    for name in ("Echo", "9lives", "a-b", "", "a" * 51):
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            db.execute("UPDATE model SET task_type = ?", [name])
    migrate_down(db, to="m0012_lock_operations")
    assert db.execute("SELECT model_id, task_type FROM model").fetchall() == [("a/own", "custom")]
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute("UPDATE model SET task_type = 'echo'")
    migrate_up(db)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.execute("UPDATE model SET task_type = 'echo'")
