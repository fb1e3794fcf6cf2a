"""Backups that can be trusted: made while serving, checked, restored; migrations that leave one."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pytest
from sqlite_utils import Database

from controlplane import backups
from controlplane.backups import (
    before_migration,
    named,
    restore,
    server_stopped,
    write_backup,
)
from controlplane.database_file import STEP_NAMES, inspect, read_only
from controlplane.db import applied_steps, downgrade, migrate_down, open_db
from controlplane.errors import (
    BackupExists,
    DatabaseDamaged,
    DatabaseInUse,
    InsufficientDisk,
    NoDatabase,
    StartupError,
    ValidationFailed,
)
from controlplane.events import EventBus
from controlplane.registry.consistency import check
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "modelmora.db"


@pytest.fixture
def store(file: Path) -> Iterator[ModelStore]:
    db = open_db(file)
    yield ModelStore(db, EventBus())
    db.close()


def register(store: ModelStore, *names: str) -> None:
    for name in names:
        store.register(NewModel(model_id=name, task_type="txt2embed"))


def names_in(file: Path) -> list[str]:
    with read_only(file) as connection:
        return [row[0] for row in connection.execute("SELECT model_id FROM model ORDER BY 1")]


def make(file: Path, *names: str) -> Path:
    """A closed database with these models."""
    db = open_db(file)
    register(ModelStore(db, EventBus()), *names)
    db.close()
    return file


# -- writing -------------------------------------------------------------------------------------


def test_a_backup_is_the_whole_database_in_one_file(store: ModelStore, tmp_path: Path) -> None:
    register(store, "a/b", "c/d")
    done = write_backup(tmp_path / "data/modelmora.db", tmp_path / "out" / "copy.db")
    assert (done.models, done.events, done.schema) == (2, 4, STEP_NAMES[-1])
    assert done.bytes == (tmp_path / "out" / "copy.db").stat().st_size
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy.db"]
    assert names_in(tmp_path / "out" / "copy.db") == ["a/b", "c/d"]
    assert inspect(tmp_path / "out" / "copy.db").damage == ()


def test_backups_are_made_of_one_moment_while_models_are_registered(
    store: ModelStore, file: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    made: list[backups.Backup] = []

    def back_up() -> None:
        while not stop.is_set():
            made.append(write_backup(file, tmp_path / f"{len(made)}.db"))

    thread = threading.Thread(target=back_up)
    thread.start()
    try:
        for number in range(150):
            register(store, f"a/b{number}")
    finally:
        stop.set()
        thread.join()
    assert made
    # a model and its two events are one change
    assert [backup.events for backup in made] == [2 * backup.models for backup in made]


def test_a_stopped_server_s_database_is_backed_up_too(file: Path, tmp_path: Path) -> None:
    make(file, "a/b")
    assert write_backup(file, tmp_path / "copy.db").models == 1


def test_an_existing_file_is_not_replaced(file: Path, tmp_path: Path) -> None:
    make(file)
    (tmp_path / "mine.db").write_text("mine")
    with pytest.raises(BackupExists):
        write_backup(file, tmp_path / "mine.db")
    assert (tmp_path / "mine.db").read_text() == "mine"


def test_no_database_is_named_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(NoDatabase, match="nowhere"):
        write_backup(tmp_path / "nowhere.db", tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(file: Path, tmp_path: Path) -> None:
    make(file)
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(ValidationFailed, match="out"):
        write_backup(file, tmp_path / "out" / "copy.db")


@pytest.mark.parametrize("garbage", [b"no database", b"", b"SQLite format 3\x00" + b"\xff" * 8000])
def test_what_is_no_database_gives_no_backup(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "bad.db").write_bytes(garbage)
    with pytest.raises(DatabaseDamaged):
        write_backup(tmp_path / "bad.db", tmp_path / "copy.db")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.db"]


def test_a_damaged_page_gives_no_backup(file: Path, tmp_path: Path) -> None:
    damage(make(file, *(f"a/b{n}" for n in range(50))))
    with pytest.raises(DatabaseDamaged):
        write_backup(file, tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy*"))


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096 * 3 : 4096 * 12] = b"\xff" * 4096 * 9
    file.write_bytes(content)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_leaves_no_half_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(file, "a/b")

    def full(database: Path, target: Path) -> None:
        target.write_bytes(b"the half of it")
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")

    monkeypatch.setattr(backups, "_copy", full)
    with pytest.raises(InsufficientDisk):
        write_backup(file, tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy*"))


@pytest.mark.parametrize(
    "name", ["../x", "", "a/b", ".hidden", "before-x", "replaced-x", "x" * 101]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValidationFailed, match="name"):
        named(Path("data"), name)


def test_names() -> None:
    assert named(Path("data"), "friday") == named(Path("data"), "friday.db")
    assert named(Path("data"), "friday") == Path("data/backups/friday.db")
    assert named(Path("data"), None).name.startswith("manual-")


# -- checking ------------------------------------------------------------------------------------


def test_a_sound_database_has_no_problems(store: ModelStore, file: Path) -> None:
    register(store, "a/b")
    report = check(file)
    assert report.sound
    assert (report.models, report.versions, report.events) == (1, 1, 2)
    assert report.warnings == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DROP INDEX idx_model_task_type", "index idx_model_task_type is missing"),
        ("DROP TRIGGER model_version_pin_immutable", "trigger model_version_pin_immutable is"),
        ("DELETE FROM model WHERE model_id = 'a/b'", "row 1 of model_version refers to a model"),
        ("DELETE FROM model_version", "model a/b has no version main"),
    ],
)
def test_what_is_wrong_is_named(file: Path, statement: str, problem: str) -> None:
    make(file, "a/b")
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert problem in " ".join(check(file).problems)


def test_a_table_of_somebody_else_is_a_warning(file: Path) -> None:
    make(file)
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    report = check(file)
    assert report.sound
    assert report.warnings == ["schema: table mine is not ModelMora's"]


def test_a_damaged_file_is_named(file: Path) -> None:
    damage(make(file, *(f"a/b{n}" for n in range(50))))
    report = check(file)
    assert not report.sound
    assert report.problems


def test_rows_without_files_and_files_without_rows_are_warnings(
    store: ModelStore, file: Path, tmp_path: Path
) -> None:
    from tests.gateway import make_ready

    register(store, "a/b", "c/d")
    make_ready(store, "a/b", "main")
    stray = tmp_path / "repository" / "x--y" / "3"
    stray.mkdir(parents=True)
    (tmp_path / "downloads" / "c--d" / "1").mkdir(parents=True)
    report = check(file, tmp_path / "repository", tmp_path / "downloads")
    assert report.sound
    assert len(report.warnings) == 2
    assert "a/b version main is ready, but /" in report.warnings[0]
    assert f"{stray} belongs to no installed version" in report.warnings[1]


# -- restoring -----------------------------------------------------------------------------------


def test_restoring_brings_back_the_backup_and_keeps_what_was_there(
    file: Path, tmp_path: Path
) -> None:
    make(file, "a/b")
    write_backup(file, tmp_path / "copy.db")
    make(file, "c/d")
    kept = restore(tmp_path / "copy.db", file)
    assert names_in(file) == ["a/b"]
    assert kept is not None
    assert names_in(kept) == ["a/b", "c/d"]
    assert not list(file.parent.glob("*restoring*"))
    assert names_in(make(file, "e/f")) == ["a/b", "e/f"]


def test_the_log_of_the_replaced_database_is_not_played_into_the_new_one(
    file: Path, tmp_path: Path
) -> None:
    make(file, "a/b")
    write_backup(file, tmp_path / "copy.db")
    # killed: its -wal holds changes that are not in the file yet
    program = (
        "import os, sys\n"
        "from tests.unit.test_backups import *\n"
        "db = open_db(sys.argv[1])\n"
        "register(ModelStore(db, EventBus()), *(f'x/y{n}' for n in range(20)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(file)], cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    assert file.with_name("modelmora.db-wal").stat().st_size > 0
    kept = restore(tmp_path / "copy.db", file)
    assert names_in(file) == ["a/b"]
    assert inspect(file).damage == ()
    assert kept is not None
    assert len(names_in(kept)) == 21


def test_a_damaged_database_is_replaced_and_kept_with_its_log(file: Path, tmp_path: Path) -> None:
    make(file, *(f"a/b{n}" for n in range(50)))
    write_backup(file, tmp_path / "copy.db")
    file.write_bytes(b"garbage" * 1000)
    file.with_name("modelmora.db-wal").write_bytes(b"its log")
    kept = restore(tmp_path / "copy.db", file)
    assert len(names_in(file)) == 50
    assert kept is not None
    assert kept.read_bytes() == b"garbage" * 1000
    assert not file.with_name("modelmora.db-wal").exists()


def test_restoring_into_an_empty_place(file: Path, tmp_path: Path) -> None:
    write_backup(make(tmp_path / "other.db", "a/b"), tmp_path / "copy.db")
    file.parent.mkdir()
    assert restore(tmp_path / "copy.db", file) is None
    assert names_in(file) == ["a/b"]


def test_a_bad_backup_changes_nothing(file: Path, tmp_path: Path) -> None:
    make(file, "a/b")
    before = file.read_bytes()
    damage(shutil.copy(make(tmp_path / "x.db", *(f"a/b{n}" for n in range(50))), tmp_path / "bad"))
    with pytest.raises(DatabaseDamaged, match="bad"):
        restore(tmp_path / "bad", file)
    with pytest.raises(NoDatabase):
        restore(tmp_path / "nowhere", file)
    Database(str(tmp_path / "x.db")).execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('modelmora', 'm9999_later', '')"
    ).connection.commit()
    with pytest.raises(StartupError, match=r"m9999_later.*db downgrade --to m\d{4}"):
        restore(tmp_path / "x.db", file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", ["_set_aside(database)", "fresh.replace(database)"])
def test_killed_while_restoring_one_of_both_is_in_place(
    file: Path, tmp_path: Path, line: str
) -> None:
    make(file, "a/b")
    write_backup(file, tmp_path / "copy.db")
    make(file, "c/d")
    program = (
        "import os, sys, pathlib\n"
        "source = pathlib.Path('controlplane/backups.py').read_text()\n"
        f"assert source.count({line!r}) == 1\n"
        f"source = source.replace({line!r}, 'os.kill(os.getpid(), 9)')\n"
        "space = {'__name__': 'killed'}\n"
        "exec(compile(source, 'killed', 'exec'), space)\n"
        "space['restore'](pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "copy.db"), str(file)], cwd=ROOT, check=False
    )
    assert run.returncode == -signal.SIGKILL
    assert names_in(make(file)) == ["a/b", "c/d"]
    restore(tmp_path / "copy.db", file)
    assert names_in(file) == ["a/b"]


def test_a_running_server_s_database_is_not_touched(file: Path) -> None:
    file.parent.mkdir()
    held = filelock.FileLock(file.parent / "server.lock")
    with (
        held,
        pytest.raises(DatabaseInUse, match="stop it, then restore"),
        server_stopped(file.parent, "restore"),
    ):
        pass
    with server_stopped(file.parent, "restore"):
        pass


# -- migrations ----------------------------------------------------------------------------------


def older(file: Path) -> Path:
    """A database of the first schema, with data."""
    db = open_db(file)
    register(ModelStore(db, EventBus()), "a/b", "c/d")
    migrate_down(db, to="m0001_registry")
    db.close()
    return file


def test_an_older_database_is_backed_up_and_migrated(file: Path) -> None:
    older(file)
    db = open_db(file)
    assert applied_steps(db) == list(STEP_NAMES)
    store = ModelStore(db, EventBus())
    assert [model.model_id for model in store.list().items] == ["a/b", "c/d"]
    assert [event.sequence for event in store.event_log.after(0, backups_filter())] == [1, 2, 3, 4]
    db.close()
    (kept,) = (file.parent / "backups").iterdir()
    assert kept.name.startswith(f"before-{STEP_NAMES[1]}-")
    assert inspect(kept).steps == ("m0001_registry",)
    assert names_in(kept) == ["a/b", "c/d"]


def backups_filter() -> object:
    from controlplane.event_log import EventFilter

    return EventFilter()


def test_neither_a_new_nor_a_current_database_is_backed_up(file: Path) -> None:
    make(make(file))
    assert not (file.parent / "backups").exists()


def test_the_last_five_automatic_backups_are_kept(file: Path) -> None:
    make(file)
    made = [before_migration(file, f"m{n}") for n in range(7)]
    write_backup(file, named(file.parent, "mine"))
    assert set((file.parent / "backups").iterdir()) == {*made[2:], named(file.parent, "mine")}


def test_without_a_backup_nothing_is_migrated(file: Path) -> None:
    older(file)
    (file.parent / "backups").write_text("in the way")
    with pytest.raises(StartupError, match=r"no backup could be made.*Nothing was changed"):
        open_db(file)
    assert inspect(file).steps == ("m0001_registry",)


@pytest.mark.parametrize("step", ["m0004_event_index", "m0007_current_status", "m0011_remote_code"])
def test_a_migration_that_is_killed_leaves_the_schema_before_it(file: Path, step: str) -> None:
    older(file)
    program = (
        "import os, sys, importlib\n"
        f"module = importlib.import_module('controlplane.migrations.{step}')\n"
        "up = module.up\n"
        "module.up = lambda db: (up(db), os.kill(os.getpid(), 9))\n"
        "from controlplane.db import open_db\n"
        "open_db(sys.argv[1])\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(file)], cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    found = inspect(file)
    assert step not in found.steps
    assert found.damage == found.faults == ()
    assert names_in(make(file)) == ["a/b", "c/d"]
    assert inspect(file).missing == []


@pytest.mark.parametrize("step", STEP_NAMES[:-1])
def test_downgrading_keeps_the_data_and_a_backup(file: Path, step: str) -> None:
    make(file, "a/b")
    before = events_in(file)
    undone, kept = downgrade(file, to=step)
    assert undone == list(reversed(STEP_NAMES[STEP_NAMES.index(step) + 1 :]))
    assert inspect(file).steps == STEP_NAMES[: STEP_NAMES.index(step) + 1]
    assert inspect(file).faults == inspect(kept).faults == inspect(file).damage == ()
    assert names_in(file) == names_in(kept) == ["a/b"]
    assert names_in(make(file)) == ["a/b"]
    assert len(before) == 2
    assert events_in(file) == before


def events_in(file: Path) -> list[tuple[str, ...]]:
    """All events, in the order in which they happened."""
    columns = "event_id, event_type, aggregate_id, aggregate_type, payload, timestamp, version"
    with read_only(file) as connection:
        return connection.execute(f"SELECT {columns} FROM event_store ORDER BY rowid").fetchall()


def test_downgrading_to_an_unknown_step_is_refused(file: Path) -> None:
    make(file)
    with pytest.raises(ValidationFailed, match="m0001_registry"):
        downgrade(file, to="m9")
    with pytest.raises(NoDatabase):
        downgrade(file.with_name("nowhere.db"), to="m0001_registry")
    assert list(file.parent.iterdir()) == [file]


def test_the_current_version_s_status_follows_every_change(store: ModelStore) -> None:
    register(store, "a/b")
    store.add_version("a/b", "v1")

    def found(status: str) -> int:
        return store.list(status=status).total_items

    assert (found("registered"), found("downloading")) == (1, 0)
    store.set_status("a/b", "v1", "downloading")
    assert (found("registered"), found("downloading")) == (1, 0)
    store.set_current("a/b", "v1")
    assert (found("registered"), found("downloading")) == (0, 1)
    store.set_status("a/b", "v1", "failed", "why")
    assert (found("failed"), found("downloading")) == (1, 0)
