"""Locks in the database: revisions, events, optimistic locking, protection, migration on data."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import msgspec
import pytest

from controlplane.db import applied_steps, migrate_down, migrate_up, open_db
from controlplane.errors import (
    ConcurrentModification,
    InvalidLock,
    LockAlreadyExists,
    LockNotFound,
    ModelLocked,
    ModelNotFound,
    ModelNotReady,
    ValidationFailed,
    VersionAlreadyExists,
)
from controlplane.events import DomainEvent, EventBus, LockCreated, LockDeleted, LockUpdated
from controlplane.registry.files import RECORD
from controlplane.registry.lock_store import LockStore
from controlplane.registry.locking import Locking
from controlplane.registry.model import NewModel, VersionStatus
from controlplane.registry.store import ModelStore
from tests.locks import add_ready, document, entry, source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlite_utils import Database


@pytest.fixture
def db() -> Iterator[Database]:
    database = open_db(":memory:")
    yield database
    database.close()


@pytest.fixture
def heard() -> list[DomainEvent]:
    return []


@pytest.fixture
def locks(db: Database, heard: list[DomainEvent]) -> LockStore:
    bus = EventBus()
    bus.subscribe(DomainEvent, heard.append)
    return LockStore(db, bus)


@pytest.fixture
def store(db: Database) -> ModelStore:
    return ModelStore(db, EventBus())


@pytest.fixture
def locking(store: ModelStore, locks: LockStore, tmp_path: Path) -> Locking:
    return Locking(store, locks, tmp_path)


# -- keeping -----------------------------------------------------------------------------------


def test_a_lock_is_kept_as_it_was(locks: LockStore) -> None:
    wanted = document(entry("a/b"), entry("a/c", source_url="file:///x"), description="why")
    made = locks.create(wanted, created_by="me")
    assert made.document == wanted
    assert locks.get("default") == made
    assert (made.version, made.active, made.created_by) == (1, True, "me")
    assert [lock.name for lock in locks.every("production")] == ["default"]
    assert locks.every("staging") == ()


def test_names_are_unique_and_unknown_ones_are_refused(locks: LockStore) -> None:
    locks.create(document(entry()))
    with pytest.raises(LockAlreadyExists):
        locks.create(document(entry()))
    for call in (locks.get, locks.delete, locks.revisions):
        with pytest.raises(LockNotFound, match="nothing"):
            call("nothing")


def test_an_invalid_lock_leaves_nothing(locks: LockStore, db: Database) -> None:
    with pytest.raises(InvalidLock):
        locks.create(document(entry(), entry()))
    assert (db["model_lock"].count, db["event_store"].count) == (0, 0)


def test_the_same_again_is_no_new_version(locks: LockStore, heard: list[DomainEvent]) -> None:
    made = locks.create(document(entry()))
    assert locks.update(document(entry())) == made
    assert [type(event) for event in heard] == [LockCreated]


def test_a_change_is_a_new_version_with_its_event(
    locks: LockStore, heard: list[DomainEvent], db: Database
) -> None:
    locks.create(document(entry("a/a"), entry("a/b")))
    changed = locks.update(document(entry("a/b", "v2"), entry("a/c")))
    assert changed.version == 2
    (event,) = (event for event in heard if isinstance(event, LockUpdated))
    assert (event.added, event.changed, event.removed) == (["a/c"], ["a/b"], ["a/a"])
    stored = [row["event_type"] for row in db["event_store"].rows]
    assert stored == ["lock.created", "lock.updated"]


def test_entries_are_snapshots_that_even_sql_cannot_change(locks: LockStore, db: Database) -> None:
    locks.create(document(entry()))
    with pytest.raises(sqlite3.IntegrityError, match="never changes"):
        db.execute("UPDATE locked_model_entry SET version = 'x'")


def test_two_changes_of_one_version_conflict(locks: LockStore) -> None:
    locks.create(document(entry()))
    locks.update(document(entry(version="v2")), expected_version=1)
    with pytest.raises(ConcurrentModification):
        locks.update(document(entry(version="v3")), expected_version=1)


def test_deleting_takes_the_revisions_along(
    locks: LockStore, db: Database, heard: list[DomainEvent]
) -> None:
    locks.create(document(entry()))
    locks.delete("default")
    for table in ("model_lock", "locked_model_entry", "model_lock_revision"):
        assert db[table].count == 0
    assert isinstance(heard[-1], LockDeleted)


def test_a_failing_event_undoes_the_change(locks: LockStore, db: Database) -> None:
    made = locks.create(document(entry()))
    db.execute("ALTER TABLE event_store RENAME TO away")
    with pytest.raises(sqlite3.OperationalError):
        locks.update(document(entry(version="v2")))
    assert locks.get("default") == made
    assert len(locks.revisions("default")) == 1


# -- from the catalog --------------------------------------------------------------------------


def test_all_ready_models_are_locked(locking: Locking, store: ModelStore) -> None:
    add_ready(store, "org/b")
    add_ready(store, "org/a")
    store.register(NewModel(model_id="org/c", task_type="txt2embed"))
    made = locking.create("default", "staging")
    assert [e.model_id for e in made.document.locked_models] == ["org/a", "org/b"]
    assert made.document.locked_models[0].files == source()


def test_chosen_and_upgraded_models(locking: Locking, store: ModelStore) -> None:
    add_ready(store)
    add_ready(store, version="v2.0.0", files=source("e"))
    assert locking.snapshot(["org/name"])[0].version == "main"
    assert locking.snapshot(None, ["org/name"])[0].version == "v2.0.0"
    store.register(NewModel(model_id="org/c", task_type="txt2embed"))
    with pytest.raises(ModelNotReady):
        locking.snapshot(["org/c"])
    with pytest.raises(ModelNotFound):
        locking.snapshot(None, ["org/unknown"])


def test_more_models_than_a_page_are_locked(locking: Locking, store: ModelStore) -> None:
    for number in range(101):
        add_ready(store, f"org/m{number:03}")
    assert len(locking.create("default", "staging").document.locked_models) == 101


def test_nothing_to_lock_is_refused_and_changes_nothing(
    locking: Locking, store: ModelStore
) -> None:
    with pytest.raises(InvalidLock, match="nothing to lock"):
        locking.create("default", "staging")
    made = locking.locks.create(document(entry()))
    with pytest.raises(InvalidLock, match="nothing to lock"):
        locking.change("default", refresh=True)
    assert locking.locks.get("default") == made


def test_refreshing_without_a_change_keeps_bytes_and_version(
    locking: Locking, store: ModelStore
) -> None:
    add_ready(store)
    locking.create("default", "staging")
    text = locking.export("default")
    assert locking.change("default", refresh=True).version == 1
    assert locking.export("default") == text
    add_ready(store, "org/second")
    assert locking.change("default", refresh=True).version == 2
    assert locking.export("default", 1) == text


def test_digests_of_an_older_modelmora_come_from_its_download(
    locking: Locking, store: ModelStore, db: Database, tmp_path: Path
) -> None:
    add_ready(store)
    db.execute("UPDATE model_version SET source_files = NULL")
    assert locking.snapshot()[0].files == ()
    version = store.version("org/name")
    folder = tmp_path / "org--name" / "1"
    folder.mkdir(parents=True)
    record = {
        "revision": version.revision,
        "artifact_uri": version.artifact_uri,
        "checksum": version.checksum,
        "files": [msgspec.to_builtins(file) for file in source()],
    }
    (folder / RECORD).write_text(json.dumps(record))
    assert locking.snapshot()[0].files == source()
    (folder / RECORD).write_text(json.dumps(record | {"checksum": "sha256:other"}))
    assert locking.snapshot()[0].files == ()


def test_rolling_back_is_a_new_version_that_says_the_old(locking: Locking) -> None:
    old = document(entry())
    locking.take(old)
    locking.take(document(entry(version="v2")))
    back = locking.rollback("default", 1)
    assert (back.version, back.document) == (3, old)
    assert [revision.version for revision in locking.locks.revisions("default")] == [1, 2, 3]
    with pytest.raises(ValidationFailed, match="has revisions 1, 2, 3"):
        locking.rollback("default", 7)


def test_what_is_imported_is_exported_unchanged(locking: Locking) -> None:
    locking.locks.create(document(entry(version="v0")))
    lock, created = locking.take(document(entry()))
    assert (created, lock.version) == (False, 2)
    assert "2026-01-02T03:04:05.678901Z" in locking.export("default")
    assert locking.take(document(entry(), name="second"))[1]


def test_a_lock_without_models_is_neither_imported_nor_exported(locking: Locking) -> None:
    with pytest.raises(InvalidLock, match="has no models"):
        locking.take(document())
    locking.locks.create(document())
    with pytest.raises(InvalidLock, match="has no models"):
        locking.export("default")


# -- protection --------------------------------------------------------------------------------


def test_an_active_lock_protects_its_model(locks: LockStore, store: ModelStore) -> None:
    add_ready(store)
    locks.create(document(entry()))
    with pytest.raises(ModelLocked, match="locked by default"):
        store.delete("org/name")
    locks.update(document(entry()), active=False)
    store.delete("org/name")
    add_ready(store)
    locks.update(document(entry()), active=True)
    store.delete("org/name", force=True)


def test_an_active_lock_protects_its_version_by_name_and_by_bytes(
    locks: LockStore, store: ModelStore
) -> None:
    add_ready(store, version="v1", files=source("1"))
    add_ready(store, version="v2", files=source("2"))
    add_ready(store, version="v3", files=source("3"))
    add_ready(store, version="v4", files=source("4"))
    locks.create(document(entry(version="v2", files=source("3"))))
    for locked in ("v2", "v3"):
        with pytest.raises(ModelLocked):
            store.remove_version("org/name", locked)
    store.remove_version("org/name", "v4")
    store.remove_version("org/name", "v3", force=True)


# -- versions that are pinned beforehand -------------------------------------------------------


def test_a_version_may_be_registered_with_its_pins(store: ModelStore) -> None:
    pins = {"revision": "c" * 40, "checksum": entry().checksum, "artifact_uri": "https://x/y"}
    store.register(NewModel(model_id="org/name", task_type="txt2embed", **pins))
    current = store.version("org/name")
    assert (current.revision, current.checksum, current.artifact_uri) == tuple(pins.values())
    assert current.status is VersionStatus.REGISTERED
    store.delete("org/name")
    other = pins | {"checksum": "sha256:" + "5" * 64}
    with pytest.raises(VersionAlreadyExists, match="stood for other files"):
        store.register(NewModel(model_id="org/name", task_type="txt2embed", **other))
    assert store.list().total_items == 0
    store.register(NewModel(model_id="org/name", task_type="txt2embed", **pins))


def test_a_place_that_was_not_known_beforehand_is_added_by_the_download(store: ModelStore) -> None:
    checksum = entry().checksum
    store.register(NewModel(model_id="org/name", task_type="txt2embed", checksum=checksum))
    pinned = store.pin(
        "org/name", "main", revision=None, checksum=checksum, artifact_uri="file:///x"
    )
    assert pinned.artifact_uri == "file:///x"


# -- migration ---------------------------------------------------------------------------------


def test_going_down_and_up_again_keeps_models_and_forgets_locks(
    db: Database, store: ModelStore, locks: LockStore
) -> None:
    add_ready(store)
    locks.create(document(entry()))
    before = store.get("org/name")
    newest = applied_steps(db)
    migrate_down(db, to="m0001_registry")
    assert not {"model_lock", "locked_model_entry", "model_lock_revision"} & set(db.table_names())
    assert "source_files" not in db["model_version"].columns_dict
    migrate_up(db)
    assert applied_steps(db) == newest
    assert store.get("org/name") == before
    assert locks.every() == ()
    assert store.source_files(before.current) == ()
