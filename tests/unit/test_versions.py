"""Rules of versions: `latest`, pinned models, what an upgrade installs; questions to the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.db import migrate_down, migrate_up, open_db
from controlplane.errors import (
    ArtifactNotAccessible,
    DownloadFailed,
    ModelNotReady,
    ModelPinned,
    ValidationFailed,
    VersionNotFound,
)
from controlplane.events import DomainEvent, EventBus
from controlplane.registry.model import Model, ModelId, NewModel, version_sort_key
from controlplane.registry.sources import HubLimits, HubRefs, list_refs
from controlplane.registry.store import ModelStore
from controlplane.registry.upgrades import (
    choose_upgrade,
    compare,
    ensure_version,
    outdated,
    target_of,
)
from tests.gateway import make_ready
from tests.hub import LocalHub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlite_utils import Database

MODEL = "org/tiny"
OLD, NEW = "a" * 40, "b" * 40
QUICK = HubLimits(answer=0.3, resolve=2.0, attempts=3, first_pause=0.01, longest_pause=0.02)


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield local


def registered(store: ModelStore, version: str = "main", **fields: Any) -> Model:
    return store.register(
        NewModel(model_id=MODEL, task_type="txt2embed", version=version, **fields)
    )


def installed(store: ModelStore, *versions: str) -> Model:
    """A model with these versions ready; the first is current."""
    registered(store, versions[0])
    for version in versions[1:]:
        store.add_version(MODEL, version)
    for version in versions:
        make_ready(store, MODEL, version)
    return store.get(MODEL)


# -- latest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "latest"),
    [
        (["v1.10.0", "v1.9.0"], "v1.10.0"),
        (["2.0.0-rc.1", "1.9.0"], "2.0.0-rc.1"),
        (["2.0.0", "2.0.0-rc.1"], "2.0.0"),
        (["0.1.0", "main"], "0.1.0"),
        (["zzz", "main"], "main"),  # names tell nothing: the last one registered
    ],
)
def test_latest_is_the_highest_version(store: ModelStore, versions: list[str], latest: str) -> None:
    installed(store, *versions)
    assert store.servable(MODEL, "latest").version == latest
    assert store.version(MODEL, "latest").version == latest


def test_latest_is_a_ready_one_and_changes_at_once(store: ModelStore) -> None:
    installed(store, "1.0.0")
    store.add_version(MODEL, "2.0.0")
    assert store.servable(MODEL, "latest").version == "1.0.0"
    make_ready(store, MODEL, "2.0.0")
    assert store.servable(MODEL, "latest").version == "2.0.0"
    assert store.servable(MODEL, None).version == "1.0.0"


def test_latest_of_nothing_and_as_a_name(store: ModelStore) -> None:
    registered(store)
    with pytest.raises(VersionNotFound):
        store.version(MODEL, "latest")
    with pytest.raises(ModelNotReady):
        store.servable(MODEL, None)
    with pytest.raises(ValidationFailed, match="newest ready"):
        store.add_version(MODEL, "latest")
    assert ensure_version(store, MODEL, "latest").version == "main"


def test_only_a_request_without_a_version_may_follow_a_switch(store: ModelStore) -> None:
    installed(store, "main")
    assert store.servable(MODEL, None).floating
    assert not store.servable(MODEL, "main").floating
    assert not store.servable(MODEL, "latest").floating


# -- pinned ------------------------------------------------------------------------------------


def test_pinning_is_told_once(store: ModelStore, heard: list[DomainEvent]) -> None:
    registered(store)
    heard.clear()
    assert store.set_pinned(MODEL, pinned=True).pinned
    assert store.set_pinned(MODEL, pinned=True).pinned
    assert [event.payload()["fields"] for event in heard] == [["pinned"]]
    assert not store.set_pinned(MODEL, pinned=False).pinned


async def test_a_pinned_model_is_not_upgraded(store: ModelStore) -> None:
    installed(store, "1.0.0", "2.0.0")
    store.set_pinned(MODEL, pinned=True)
    for version in (None, "2.0.0"):
        with pytest.raises(ModelPinned, match="modelmora unpin"):
            await choose_upgrade(store, MODEL, version)
    assert store.set_current(MODEL, "2.0.0").pinned


def test_the_migration_keeps_the_models_both_ways(store: ModelStore, db: Database) -> None:
    installed(store, "1.0.0", "2.0.0")
    store.set_pinned(MODEL, pinned=True)
    versions = store.get(MODEL).versions
    migrate_down(db, to="m0001_registry")
    assert "pinned" not in db["model"].columns_dict
    assert db["model"].count == 1
    migrate_up(db)
    assert not store.get(MODEL).pinned
    assert store.get(MODEL).versions == versions


# -- upgrades ----------------------------------------------------------------------------------


def test_a_branch_that_moved_becomes_a_version_named_by_its_commit(store: ModelStore) -> None:
    registered(store)
    store.set_status(MODEL, "main", "downloading")
    checksum = "sha256:" + "1" * 64
    store.pin(MODEL, "main", revision=OLD, checksum=checksum, artifact_uri="x")
    refs = HubRefs(branches={"main": NEW}, tags={"v9.0.0": OLD})
    update = compare(store.get(MODEL), refs)
    assert update.outdated
    assert update.newer_versions == ()  # a branch cannot be compared with tags
    target = target_of(update, refs)
    assert target is not None
    added = ensure_version(store, MODEL, target.version, target=target)
    assert (added.version, added.revision) == (NEW[:12], NEW)
    assert added.metadata == {"branch": "main"}
    current = store.set_current(MODEL, added.version)
    assert compare(current, refs).branch == "main"  # it goes on following its branch
    assert not compare(current, refs).outdated


def test_a_version_that_was_never_downloaded_is_not_outdated(store: ModelStore) -> None:
    assert not compare(registered(store), HubRefs(branches={"main": NEW}, tags={})).outdated


TAGS = st.builds("v{}.{}.{}".format, *[st.integers(0, 12)] * 3) | st.sampled_from(["x", "nightly"])


@settings(max_examples=30, deadline=None)
@given(st.sets(TAGS, max_size=8), st.builds("v{}.{}.{}".format, *[st.integers(0, 12)] * 3))
def test_newer_tags_are_those_above_the_current_one(tags: set[str], current: str) -> None:
    database = open_db(":memory:")
    model = registered(ModelStore(database, EventBus()), current)
    database.close()
    refs = HubRefs(branches={}, tags=dict.fromkeys(tags, NEW))
    update = compare(model, refs)
    newer = [tag for tag in tags if tag.startswith("v")]
    newer = [tag for tag in newer if version_sort_key(tag) > version_sort_key(current)]
    assert sorted(newer, key=version_sort_key, reverse=True) == list(update.newer_versions)
    target = target_of(update, refs)
    assert (target.version if target else None) == (update.newer_versions or (None,))[0]


async def test_an_older_version_is_no_upgrade(store: ModelStore) -> None:
    installed(store, "2.0.0", "1.0.0")
    with pytest.raises(ValidationFailed, match="use downgrade"):
        await choose_upgrade(store, MODEL, "1.0.0")
    chosen = await choose_upgrade(store, MODEL, "3.0.0")
    assert chosen is not None
    assert chosen.status.value == "registered"


async def test_a_directory_tells_of_no_newer_version(store: ModelStore) -> None:
    registered(store, source_url="file:///models/tiny")
    with pytest.raises(ValidationFailed, match="is needed"):
        await choose_upgrade(store, MODEL)
    assert await outdated(store) == []


# -- the hub -----------------------------------------------------------------------------------


def test_the_hub_tells_branches_and_tags(hub: LocalHub) -> None:
    first = hub.add(MODEL, {"config.json": b"1"})
    hub.tag(MODEL, "v1.0.0", first)
    second = hub.add(MODEL, {"config.json": b"2"}, branch="team/next")
    refs = list_refs(ModelId("org", "tiny"), limits=QUICK)
    assert refs == HubRefs({"main": first, "team/next": second}, {"v1.0.0": first})


def test_a_hub_that_recovers_is_asked_again(hub: LocalHub) -> None:
    commit = hub.add(MODEL, {"config.json": b"1"})
    hub.fail("/refs", status=500)
    hub.fail("/refs", status=429)
    assert list_refs(ModelId("org", "tiny"), limits=QUICK).branches == {"main": commit}
    assert hub.asked("/refs") == 3


def test_a_hub_that_stalls_is_given_up(hub: LocalHub) -> None:
    hub.add(MODEL, {"config.json": b"1"})
    hub.stall("/refs", times=5)
    with pytest.raises(DownloadFailed, match="Try again later"):
        list_refs(ModelId("org", "tiny"), limits=QUICK)


def test_a_hub_that_talks_nonsense_is_named(hub: LocalHub) -> None:
    hub.add(MODEL, {"config.json": b"1"})
    hub.corrupt("/refs")
    with pytest.raises(DownloadFailed, match="HF_ENDPOINT"):
        list_refs(ModelId("org", "tiny"), limits=QUICK)


async def test_a_repository_that_cannot_be_read_says_so(store: ModelStore, hub: LocalHub) -> None:
    registered(store)
    with pytest.raises(ArtifactNotAccessible, match="private"):
        list_refs(ModelId("org", "tiny"), limits=QUICK)
    (update,) = await outdated(store)
    assert update.error is not None
    assert not update.outdated
    assert hub.asked("/refs") == 2  # 401 is not tried again


async def test_many_models_are_asked_about_at_a_time_and_none_waits_for_the_slow(
    store: ModelStore, hub: LocalHub
) -> None:
    for number in range(12):
        hub.add(f"org/m{number:02}", {"config.json": b"1"})
        store.register(NewModel(model_id=f"org/m{number:02}", task_type="txt2embed"))
    for number in range(7):  # all of those that are asked at once, but one
        hub.stall(f"org/m{number:02}/refs", times=9)
    updates = await outdated(store, within=2.0)
    assert [update.model_id for update in updates] == [f"org/m{n:02}" for n in range(12)]
    assert [update.error is None for update in updates] == [False] * 7 + [True] * 5
    assert "did not answer for all models within 2 s" in (updates[0].error or "")


def test_more_models_than_a_query_takes_parameters(store: ModelStore) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlplane.registry.rows._MOST_PARAMETERS", 2)
        for number in range(5):
            store.register(NewModel(model_id=f"org/m{number}", task_type="txt2embed"))
        assert [len(model.versions) for model in store.every_model()] == [1] * 5
