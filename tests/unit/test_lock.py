"""The rules of locks: what is valid, how a lock and a catalog differ, what makes them equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.db import open_db
from controlplane.events import EventBus
from controlplane.registry.lock import LockedModelEntry, entry_of, validate
from controlplane.registry.lock_plan import Action, differences, plan
from controlplane.registry.model import Model, ResourceRequirements
from controlplane.registry.store import ModelStore
from controlplane.registry.sync import bring
from tests.locks import COMMIT, add_ready, document, entry, source

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = source("e")


@pytest.fixture
def store() -> Iterator[ModelStore]:
    db = open_db(":memory:")
    yield ModelStore(db, EventBus())
    db.close()


def catalog(store: ModelStore) -> dict[str, Model]:
    return {model.model_id: model for model in store.list(page_size=100).items}


def actions(store: ModelStore, *entries: LockedModelEntry, **options: Any) -> list[Action]:
    return list(plan(entries, catalog(store), store.retired_checksums(), **options))


def kinds(found: list[Action]) -> list[tuple[str, str]]:
    return [(action.kind, action.version) for action in found]


# -- validity ----------------------------------------------------------------------------------


def test_a_sound_lock_is_valid() -> None:
    result = validate(document(entry("a/b"), entry("a/c"), description="two\nlines"))
    assert (result.valid, result.errors, result.warnings) == (True, {}, [])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_id": "noslash"}, "model_id"),
        ({"version": "a..b"}, "version"),
        ({"checksum": "sha256:abc"}, "checksum"),
        ({"checksum": "sha256:" + "1" * 64}, "checksum"),
        ({"revision": "main"}, "revision"),
        ({"artifact_uri": "ftp://x/y"}, "artifact_uri"),
        ({"artifact_uri": "https://x/\ny"}, "artifact_uri"),
        ({"source_url": ""}, "source_url"),
        ({"task_type": "txt 2 smell"}, "task_type"),
        ({"artefact_checksum": "9"}, "artefact_checksum"),
        (
            {"resource_requirements": ResourceRequirements(memory_mb=0)},
            "resource_requirements.memory_mb",
        ),
        (
            {"files": (msgspec.structs.replace(source()[0], path="../x"),)},
            "files[0].path",
        ),
        ({"files": (msgspec.structs.replace(source()[0], sha256="A"),)}, "files[0].sha256"),
        ({"files": (msgspec.structs.replace(source()[0], size=-1),)}, "files[0].size"),
        ({"files": (source()[0], source()[0])}, "files"),
    ],
)
def test_every_broken_rule_of_an_entry_names_its_field(changes: dict[str, Any], field: str) -> None:
    broken = entry(**({"model_id": "a/b"} | changes))
    assert list(validate(document(entry("a/a"), broken)).errors) == [f"locked_models[1].{field}"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "import"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"environment": ""}, "environment"),
        ({"environment": "x" * 51}, "environment"),
        ({"description": "x" * 1001}, "description"),
        ({"description": "\x00"}, "description"),
    ],
)
def test_every_broken_rule_of_a_lock_names_its_field(changes: dict[str, Any], field: str) -> None:
    assert list(validate(document(entry(), **changes)).errors) == [field]


def test_a_model_twice_is_an_error_and_missing_digests_are_a_warning() -> None:
    result = validate(document(entry("a/b"), entry("a/b", files=(), checksum="sha256:" + "1" * 64)))
    assert list(result.errors) == ["locked_models[1].model_id"]
    assert result.warnings == ["a/b: has no digests of single files"]


# -- entries of the catalog --------------------------------------------------------------------


def test_an_entry_is_a_snapshot_of_its_version(store: ModelStore) -> None:
    add_ready(store)
    model = store.get("org/name")
    made = entry_of(model, model.current, reversed(store.source_files(model.current)))
    assert made.files == source()
    assert made.revision == COMMIT
    assert made.converter is not None
    assert (made.converter.torch, made.converter.precision, made.converter.opset) == (
        "2.13.0",
        "fp32",
        18,
    )
    assert validate(document(made)).errors == {}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (["v1.2.0", "v1.10.0", "main"], "v1.10.0"),
        (["v2.0.0", "v2.0.0-rc.1"], "v2.0.0"),
        (["main", "dev", "abc"], "abc"),
    ],
)
def test_the_newest_version(store: ModelStore, versions: list[str], expected: str) -> None:
    for number, version in enumerate(versions):
        add_ready(store, version=version, files=source(str(number)))
    store.add_version("org/name", "v99.0.0")  # not ready
    found = store.get("org/name").latest
    assert found is not None
    assert found.version == expected


# -- differences -------------------------------------------------------------------------------


def test_equal_entries_do_not_differ_in_whatever_order() -> None:
    assert differences([entry("a/b"), entry("a/a")], [entry("a/a"), entry("a/b")]) == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": "v2"}, "version"),
        ({"revision": "d" * 40}, "revision"),
        ({"converter": None}, "converter.modelmora"),
        ({"artefact_checksum": None}, "artefact_checksum"),
        ({"resource_requirements": ResourceRequirements(memory_mb=7)}, "resource_requirements"),
    ],
)
def test_a_difference_names_the_field_and_both_values(changes: dict[str, Any], field: str) -> None:
    first = differences([entry()], [entry(**changes)])[0]
    assert (first.model_id, first.field) == ("org/name", field)
    assert field in str(first)


def test_models_on_one_side_only_differ() -> None:
    found = differences([entry("a/gone")], [entry("a/new")])
    assert list(map(str, found)) == [
        "a/gone is locked but not installed",
        "a/new is not in the lock",
    ]


# -- plans -------------------------------------------------------------------------------------


def test_a_catalog_that_is_as_locked_needs_nothing(store: ModelStore) -> None:
    add_ready(store)
    assert actions(store, entry()) == []


def test_what_is_missing_is_installed(store: ModelStore) -> None:
    assert kinds(actions(store, entry())) == [("install", "main")]
    add_ready(store)
    assert kinds(actions(store, entry(version="v2", files=OTHER))) == [("install", "v2")]
    store.set_status("org/name", "main", "failed", "gone")
    assert kinds(actions(store, entry())) == [("install", "main")]


def test_an_installed_version_that_is_not_current_is_switched_to(store: ModelStore) -> None:
    add_ready(store)
    add_ready(store, version="v2", files=OTHER)
    assert kinds(actions(store, entry(version="v2", files=OTHER))) == [("switch", "v2")]


def test_the_same_bytes_under_another_name_will_do(store: ModelStore) -> None:
    add_ready(store, version=COMMIT)
    assert actions(store, entry()) == []


def test_a_name_that_stands_for_other_bytes_gives_way_to_the_commit(store: ModelStore) -> None:
    add_ready(store, files=OTHER)
    assert kinds(actions(store, entry())) == [("install", COMMIT)]
    store.delete("org/name")
    assert kinds(actions(store, entry())) == [("install", COMMIT)]


def test_without_a_commit_that_is_a_conflict(store: ModelStore) -> None:
    add_ready(store, files=OTHER)
    (found,) = actions(store, entry(revision=None))
    assert found.kind == "conflict"
    assert "stands for other files here" in found.reason


def test_another_task_is_a_conflict(store: ModelStore) -> None:
    add_ready(store)
    assert kinds(actions(store, entry(task_type="txt2txt"))) == [("conflict", "main")]


def test_models_beyond_the_lock_are_told_of_or_removed(store: ModelStore) -> None:
    add_ready(store)
    add_ready(store, "org/extra")
    assert [a.kind for a in actions(store, entry())] == ["extra"]
    assert [a.kind for a in actions(store, entry(), prune=True)] == ["remove"]


_FILES = st.sampled_from([source(digit) for digit in "012"])
_LOCKED = st.builds(
    lambda name, version, files: entry(
        f"org/{name}", version, files=files, revision=files[0].sha256[0] * 40
    ),
    st.sampled_from("ab"),
    st.sampled_from(["main", "v1.0.0"]),
    _FILES,
)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["main", "v1.0.0"]), _FILES)),
    st.sets(st.sampled_from("ab")),
    st.lists(_LOCKED, unique_by=lambda e: e.model_id),
)
def test_doing_what_the_plan_says_leaves_nothing_to_do(
    before: list[Any], deleted: set[str], locked: list[LockedModelEntry]
) -> None:
    db = open_db(":memory:")
    store = ModelStore(db, EventBus())
    for name, version, files in before:
        known = catalog(store).get(f"org/{name}")
        if known is None or version not in {v.version for v in known.versions}:
            add_ready(store, f"org/{name}", version, files=files, revision="f" * 40)
    for name in deleted & {name for name, _, _ in before}:
        store.delete(f"org/{name}")
    for action in actions(store, *locked, prune=True):
        perform(store, action, {e.model_id: e for e in locked})
    assert actions(store, *locked, prune=True) == []
    db.close()


def perform(store: ModelStore, action: Action, locked: dict[str, LockedModelEntry]) -> None:
    """As a sync does, with an installation that always succeeds."""
    assert action.kind != "conflict"
    if action.kind == "remove":
        store.delete(action.model_id, force=True)
        return
    if action.kind == "install":
        wanted = locked[action.model_id]
        bring(store, wanted, action.version)
        store.set_status(action.model_id, action.version, "downloading")
        store.set_status(action.model_id, action.version, "exporting")
        manifest = {"backend": "text_embedding", "engine": "onnxruntime"}
        store.mark_ready(
            action.model_id,
            action.version,
            manifest=manifest,
            artefact_bytes=1,
            artefact_checksum=wanted.checksum,
        )
    store.set_current(action.model_id, action.version)
