"""The catalog's store on a real database: changes, locks, events, pins, the servable cache."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.db import open_db
from controlplane.errors import (
    ChecksumMismatch,
    ConcurrentModification,
    CurrentVersionProtected,
    InvalidChecksum,
    InvalidModelId,
    InvalidStateTransition,
    InvalidTaskType,
    ModelAlreadyExists,
    ModelMoraError,
    ModelNotFound,
    ModelNotReady,
    ValidationFailed,
    VersionAlreadyExists,
    VersionNotFound,
)
from controlplane.events import DomainEvent, EventBus
from controlplane.registry.model import (
    STATUS_MOVES,
    ModelChange,
    ModelVersion,
    NewModel,
    ResourceRequirements,
    VersionStatus,
)
from controlplane.registry.rows import update
from controlplane.registry.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlite_utils import Database

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
MANIFEST = {
    "backend": "text_embedding",
    "engine": "onnxruntime",
    "files": [],
    "converter": {"torch": "2.13.0"},
}


@pytest.fixture
def db() -> Iterator[Database]:
    database = open_db(":memory:")
    yield database
    database.close()


@pytest.fixture
def heard() -> list[DomainEvent]:
    return []


@pytest.fixture
def store(db: Database, heard: list[DomainEvent]) -> ModelStore:
    bus = EventBus()
    bus.subscribe(DomainEvent, heard.append)
    return ModelStore(db, bus)


def new(model_id: str = "org/name", **fields: Any) -> NewModel:
    return NewModel(model_id=model_id, task_type="txt2embed", **fields)


def make_ready(
    store: ModelStore, model_id: str = "org/name", version: str = "main"
) -> ModelVersion:
    store.set_status(model_id, version, "downloading")
    store.set_status(model_id, version, "exporting")
    if store.version(model_id, version).checksum is None:
        store.pin(model_id, version, revision=None, checksum=ONE, artifact_uri="file:///m")
    return store.mark_ready(
        model_id, version, manifest=MANIFEST, artefact_bytes=2**20 * 100, artefact_checksum=TWO
    )


def stored(db: Database) -> list[str]:
    return [row["event_type"] for row in db["event_store"].rows]


# -- models ------------------------------------------------------------------------------------


def test_a_registered_model_is_found_by_every_spelling(store: ModelStore) -> None:
    model = store.register(
        new(
            version="v1.0.0",
            display_name="Name",
            config={"batch_size": 8},
            custom_params={"ü": [1, None]},
            metadata={"license": "MIT"},
            resource_requirements=ResourceRequirements(memory_mb=300),
        )
    )
    assert model.version == 1
    assert model.current.version == "v1.0.0"
    assert model.current.status is VersionStatus.REGISTERED
    assert model.current.triton_version == 1
    assert model.current.requirements_declared
    assert model.custom_params == {"ü": [1, None]}
    assert model.created_at == model.updated_at
    for name in ("org/name", "org%2Fname", "org%2fname", "org--name"):
        assert store.get(name) == model


def test_a_model_is_registered_once(store: ModelStore, db: Database) -> None:
    store.register(new())
    with pytest.raises(ModelAlreadyExists):
        store.register(new(version="other"))
    assert db["model_version"].count == 1
    assert store.register(new("ORG/name")).model_id == "ORG/name"  # case-sensitive


def test_what_is_not_registered_is_not_found(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match="modelmora install org/name"):
        store.get("org/name")
    with pytest.raises(InvalidModelId):
        store.get("gpt2")
    store.register(new())
    with pytest.raises(VersionNotFound):
        store.version("org/name", "v9")


def test_an_update_changes_what_it_names(store: ModelStore) -> None:
    before = store.register(new(description="old", config={"a": 1}))
    after = store.update(
        "org/name",
        ModelChange(description=None, resource_requirements=ResourceRequirements(memory_mb=7)),
    )
    assert after.description is None
    assert after.config == {"a": 1}
    assert after.version == 2
    assert after.updated_at > before.updated_at
    assert after.created_at == before.created_at
    assert after.current.requirements_declared
    assert after.current.need_mb == 7


def test_an_empty_update_changes_nothing(store: ModelStore, heard: list[DomainEvent]) -> None:
    model = store.register(new())
    heard.clear()
    assert store.update("org/name", ModelChange()) == model
    assert heard == []


def test_an_update_on_old_knowledge_is_refused(store: ModelStore) -> None:
    store.register(new())
    store.update("org/name", ModelChange(display_name="first"), expected_version=1)
    with pytest.raises(ConcurrentModification):
        store.update("org/name", ModelChange(display_name="second"), expected_version=1)
    assert store.get("org/name").display_name == "first"


def test_a_row_that_somebody_else_changed_is_not_overwritten(
    store: ModelStore, db: Database
) -> None:
    model = store.register(new())
    assert update(db, "model", model.id, 1, model.updated_at, {"display_name": "x"})
    assert not update(db, "model", model.id, 1, model.updated_at, {"display_name": "y"})
    assert store.get("org/name").display_name == "x"
    assert store.get("org/name").version == 2


def test_two_servers_on_one_file_see_each_other_s_changes(tmp_path: Path) -> None:
    first, second = (open_db(tmp_path / "modelmora.db") for _ in range(2))
    one, other = ModelStore(first, EventBus()), ModelStore(second, EventBus())
    one.register(new())
    seen = other.get("org/name").version
    one.update("org/name", ModelChange(display_name="x"))
    with pytest.raises(ConcurrentModification):
        other.update("org/name", ModelChange(display_name="y"), expected_version=seen)
    with pytest.raises(ModelAlreadyExists):
        other.register(new())
    first.close()
    second.close()


def test_deleting_takes_the_versions_along(store: ModelStore, db: Database) -> None:
    model = store.register(new())
    store.add_version("org/name", "v1.0.0")
    assert {v.version for v in store.delete("org--name").versions} == {"main", "v1.0.0"}
    assert db["model_version"].count == 0
    assert db["model_catalog"].get(model.catalog_id)["version_number"] == 4
    with pytest.raises(ModelNotFound):
        store.delete("org/name")


# -- listing -----------------------------------------------------------------------------------


def test_a_list_is_filtered_and_cut_into_pages(store: ModelStore) -> None:
    for number in range(7):
        store.register(new(f"org/m{number}"))
    store.register(new("other/Thing"))
    make_ready(store, "org/m3")
    page = store.list(page=2, page_size=3)
    assert [model.model_id for model in page.items] == ["org/m3", "org/m4", "org/m5"]
    assert (page.page, page.page_size, page.total_items, page.total_pages) == (2, 3, 8, 3)
    assert [m.model_id for m in store.list(status="ready").items] == ["org/m3"]
    assert [m.model_id for m in store.list(search_text="thing").items] == ["other/Thing"]
    assert store.list(search_text="%").total_items == 0
    assert store.list(task_type="TXT2EMBED", status="registered").total_items == 7
    assert store.list(task_type="txt2txt").total_pages == 0
    assert store.list(page=99).items == ()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"page": 0}, "page"),
        ({"page": 10**30}, "page"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": 101}, "page_size"),
        ({"status": "done"}, "status"),
    ],
)
def test_a_list_s_arguments_are_checked(
    store: ModelStore, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationFailed) as raised:
        store.list(**arguments)
    assert list(raised.value.details["fields"]) == [field]
    with pytest.raises(InvalidTaskType):
        store.list(task_type="nonsense")


# -- versions ----------------------------------------------------------------------------------


def test_versions_come_and_go(store: ModelStore) -> None:
    store.register(new())
    added = store.add_version("org/name", "v1.0.0", metadata={"a": 1}, created_by="me")
    assert (added.triton_version, added.metadata, added.created_by) == (2, {"a": 1}, "me")
    with pytest.raises(VersionAlreadyExists):
        store.add_version("org/name", "v1.0.0")
    with pytest.raises(ValidationFailed):
        store.add_version("org/name", "v 2")
    with pytest.raises(CurrentVersionProtected):
        store.remove_version("org/name", "main")
    assert store.set_current("org/name", "2").current_version == "v1.0.0"
    assert store.remove_version("org/name", "main").version == "main"
    assert [v.version for v in store.get("org/name").versions] == ["v1.0.0"]


def test_making_the_current_version_current_changes_nothing(
    store: ModelStore, heard: list[DomainEvent]
) -> None:
    model = store.register(new())
    heard.clear()
    assert store.set_current("org/name", "main") == model
    assert heard == []


def test_triton_numbers_are_never_used_again(store: ModelStore) -> None:
    store.register(new())
    store.add_version("org/name", "a")
    store.remove_version("org/name", "a")
    assert store.add_version("org/name", "b").triton_version == 3
    store.delete("org/name")
    assert store.register(new()).current.triton_version == 4
    assert store.register(new("org/other")).current.triton_version == 1


def test_a_deleted_version_comes_back_only_with_its_own_bytes(store: ModelStore) -> None:
    store.register(new())
    store.pin("org/name", "main", revision="c", checksum=ONE, artifact_uri="file:///m")
    store.delete("org/name")
    store.register(new())
    with pytest.raises(VersionAlreadyExists, match=f"{ONE}.*install a tag or a commit"):
        store.pin("org/name", "main", revision="d", checksum=TWO, artifact_uri="file:///m")
    store.pin("org/name", "main", revision="c", checksum=ONE, artifact_uri="file:///m")


def test_a_version_that_never_had_bytes_may_come_back_with_any(store: ModelStore) -> None:
    store.register(new())
    store.delete("org/name")
    store.register(new())
    store.pin("org/name", "main", revision=None, checksum=TWO, artifact_uri="file:///m")


def test_a_pin_is_for_ever(store: ModelStore, heard: list[DomainEvent], db: Database) -> None:
    store.register(new())
    pinned = store.pin("org/name", "main", revision="c", checksum=ONE, artifact_uri="file:///m")
    heard.clear()
    again = store.pin("org/name", "main", revision="c", checksum=ONE, artifact_uri="file:///m")
    assert again == pinned
    assert heard == []
    with pytest.raises(ChecksumMismatch):
        store.pin("org/name", "main", revision="c", checksum=TWO, artifact_uri="file:///m")
    with pytest.raises(InvalidChecksum):
        store.pin("org/name", "main", revision="c", checksum="sha256:1", artifact_uri="file:///m")
    with pytest.raises(sqlite3.IntegrityError, match="never change"):
        db.execute("UPDATE model_version SET checksum = ?", [TWO])


@pytest.mark.parametrize("start", VersionStatus)
@pytest.mark.parametrize("target", VersionStatus)
def test_only_the_moves_of_the_status_machine_are_made(
    store: ModelStore, start: VersionStatus, target: VersionStatus
) -> None:
    store.register(new())
    ways = {"registered": (), "downloading": ("downloading",), "failed": ("downloading", "failed")}
    if start is VersionStatus.READY:
        make_ready(store)
    else:
        for step in ways.get(start.value, ("downloading", "exporting")):
            store.set_status("org/name", "main", step)
    store.version("org/name")
    if target is VersionStatus.READY and target in STATUS_MOVES[start]:
        return  # only mark_ready and recovery can, with what a ready version needs
    if target in STATUS_MOVES[start]:
        assert store.set_status("org/name", "main", target).status is target
    else:
        with pytest.raises(InvalidStateTransition):
            store.set_status("org/name", "main", target)
        assert store.version("org/name").status is start


def test_an_error_is_kept_until_the_next_attempt(store: ModelStore) -> None:
    store.register(new())
    store.set_status("org/name", "main", "downloading")
    assert store.set_status("org/name", "main", "failed", "why").error_message == "why"
    assert store.set_status("org/name", "main", "downloading").error_message is None


def test_ready_fills_in_what_the_artefact_says(store: ModelStore) -> None:
    store.register(new())
    version = make_ready(store)
    assert (version.backend, version.engine) == ("text_embedding", "onnxruntime")
    assert version.framework_version == "2.13.0"
    assert version.artefact == MANIFEST
    assert version.resource_requirements == ResourceRequirements.estimate(100 * 2**20)
    assert version.need_mb == 150


def test_declared_requirements_are_not_replaced_by_the_estimate(store: ModelStore) -> None:
    store.register(new(resource_requirements=ResourceRequirements(memory_mb=9)))
    assert make_ready(store).need_mb == 9


def test_a_row_cannot_be_ready_without_an_artefact(store: ModelStore, db: Database) -> None:
    store.register(new())
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("UPDATE model_version SET status = 'ready'")


def test_interrupted_installations_are_failed_at_start(store: ModelStore) -> None:
    for name, steps in (
        ("a/a", ()),
        ("a/b", ("downloading",)),
        ("a/c", ("downloading", "exporting")),
    ):
        store.register(new(name))
        for step in steps:
            store.set_status(name, "main", step)
    assert store.recover_interrupted() == ["a/b", "a/c"]
    assert store.version("a/a").status is VersionStatus.REGISTERED
    assert "restart" in (store.version("a/c").error_message or "")
    assert store.recover_interrupted() == []


# -- servable ------------------------------------------------------------------------------------


def test_a_servable_is_asked_of_the_database_once(store: ModelStore, db: Database) -> None:
    store.register(new())
    make_ready(store)
    queries: list[str] = []
    db.conn.set_trace_callback(queries.append)
    first = store.servable("org--name", None)
    assert queries
    queries.clear()
    assert store.servable("org--name", None) is first
    assert queries == []
    assert first.key == ("org--name", 1)
    assert store.servable("org/name", "1") == store.servable("org/name", "main")


def test_a_change_is_seen_by_the_next_request(store: ModelStore) -> None:
    store.register(new())
    make_ready(store)
    before = store.servable("org/name")
    store.record_memory(before.version_id, 321.5)
    assert store.servable("org/name").need_mb == 321.5
    store.add_version("org/name", "v2")
    make_ready(store, version="v2")
    store.set_current("org/name", "v2")
    assert store.servable("org/name").triton_version == 2
    store.delete("org/name")
    with pytest.raises(ModelNotFound):
        store.servable("org/name")


def test_only_a_ready_version_is_servable(store: ModelStore) -> None:
    store.register(new())
    with pytest.raises(ModelNotReady, match="modelmora install org/name"):
        store.servable("org/name")
    store.set_status("org/name", "main", "downloading")
    store.set_status("org/name", "main", "failed", "no such thing")
    with pytest.raises(ModelNotReady, match="no such thing"):
        store.servable("org/name")
    with pytest.raises(VersionNotFound):
        store.servable("org/name", "v9")


def test_memory_of_a_version_that_is_gone_is_ignored(store: ModelStore) -> None:
    store.record_memory("nobody", 1.0)


# -- events --------------------------------------------------------------------------------------


def test_every_change_tells_of_itself_in_the_store_and_on_the_bus(
    store: ModelStore, db: Database, heard: list[DomainEvent]
) -> None:
    store.register(new())
    make_ready(store)
    store.record_memory(store.version("org/name").id, 5.0)
    store.update("org/name", ModelChange(display_name="x"))
    store.add_version("org/name", "v2")
    store.set_current("org/name", "v2")
    store.remove_version("org/name", "main")
    store.delete("org/name")
    assert stored(db) == [
        *("model.registered", "model.version.added"),
        *("model.download.requested", "model.version.status_changed"),
        *("model.version.status_changed", "model.version.pinned", "model.version.status_changed"),
        *("model.updated", "model.updated", "model.version.added", "model.version.changed"),
        *("model.version.removed", "model.unregistered"),
    ]
    assert [event.event_type for event in heard] == stored(db)
    rows = list(db["event_store"].rows)
    assert {row["aggregate_id"] for row in rows} == {db["model_catalog"].rows.__next__()["id"]}
    assert json.loads(rows[0]["payload"]) == {
        "model_id": "org/name", "task_type": "txt2embed", "version": "main"
    }  # fmt: skip


def test_a_change_whose_event_cannot_be_stored_did_not_happen(
    store: ModelStore, db: Database, heard: list[DomainEvent]
) -> None:
    store.register(new())
    heard.clear()
    before = stored(db)
    db.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON event_store BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    changes = [
        lambda: store.register(new("org/other")),
        lambda: store.update("org/name", ModelChange(display_name="x")),
        lambda: store.add_version("org/name", "v2"),
        lambda: store.set_status("org/name", "main", "downloading"),
        lambda: store.pin(
            "org/name", "main", revision=None, checksum=ONE, artifact_uri="file:///m"
        ),
        lambda: store.delete("org/name"),
    ]
    model = store.get("org/name")
    for change in changes:
        with pytest.raises(sqlite3.IntegrityError, match="no"):
            change()
        assert store.get("org/name") == model
    assert db["model"].count == 1
    assert db["retired_version"].count == 0
    assert stored(db) == before
    assert heard == []


def test_a_listener_hears_after_the_commit(db: Database) -> None:
    bus = EventBus()
    store = ModelStore(db, bus)
    seen: list[bool] = []
    bus.subscribe(DomainEvent, lambda event: seen.append(db.conn.in_transaction))
    bus.subscribe(DomainEvent, lambda event: seen.append(store.get("org/name") is None))
    store.register(new())
    assert seen == [False] * 4


# -- all of it -------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a/x", "a/y"])
VERSIONS = st.sampled_from(["main", "v1", "v2"])


class Catalog(RuleBasedStateMachine):
    """Random changes; what must hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.db = open_db(":memory:")
        self.store = ModelStore(self.db, EventBus())
        self.used: dict[str, dict[int, str]] = {}

    def attempt(self, change: Any) -> None:
        try:
            change()
        except ModelMoraError:
            assert not self.db.conn.in_transaction

    @rule(name=NAMES, version=VERSIONS)
    def register(self, name: str, version: str) -> None:
        self.attempt(lambda: self.store.register(new(name, version=version)))

    @rule(name=NAMES, version=VERSIONS)
    def add_version(self, name: str, version: str) -> None:
        self.attempt(lambda: self.store.add_version(name, version))

    @rule(name=NAMES, version=VERSIONS)
    def set_current(self, name: str, version: str) -> None:
        self.attempt(lambda: self.store.set_current(name, version))

    @rule(name=NAMES, version=VERSIONS)
    def remove_version(self, name: str, version: str) -> None:
        self.attempt(lambda: self.store.remove_version(name, version))

    @rule(name=NAMES, version=VERSIONS, status=st.sampled_from(VersionStatus))
    def set_status(self, name: str, version: str, status: VersionStatus) -> None:
        if status is not VersionStatus.READY:
            self.attempt(lambda: self.store.set_status(name, version, status))

    @rule(name=NAMES, version=VERSIONS)
    def make_ready(self, name: str, version: str) -> None:
        self.attempt(lambda: make_ready(self.store, name, version))

    @rule(name=NAMES)
    @precondition(lambda self: len(self.used) > 0)
    def delete(self, name: str) -> None:
        self.attempt(lambda: self.store.delete(name))

    @invariant()
    def every_model_has_a_current_version(self) -> None:
        for model in self.store.list().items:
            assert model.current.version == model.current_version

    @invariant()
    def a_triton_number_stands_for_one_version_for_ever(self) -> None:
        for version in self.store.every_version():
            known = self.used.setdefault(version.model_id, {})
            assert known.setdefault(version.triton_version, version.id) == version.id

    @invariant()
    def exactly_ready_versions_are_servable(self) -> None:
        for version in self.store.every_version():
            ready = version.status is VersionStatus.READY
            try:
                assert (
                    self.store.servable(version.model_id, version.version).version_id == version.id
                )
                assert ready
            except ModelNotReady:
                assert not ready

    def teardown(self) -> None:
        self.db.close()


TestCatalog = Catalog.TestCase
TestCatalog.settings = hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A_B", ["x/a_b"]),
        ("a%b", []),
        ("a\\b", []),
        ("ä", []),
        ("b\0", []),
        ("a" * 60_000, []),
        ("X/A", ["x/a_b", "x/axb"]),
    ],
)
def test_searching_takes_every_character_as_itself(
    store: ModelStore, text: str, found: list[str]
) -> None:
    for name in ("x/a_b", "x/axb"):
        store.register(NewModel(model_id=name, task_type="txt2embed"))
    assert [model.model_id for model in store.list(search_text=text).items] == found
