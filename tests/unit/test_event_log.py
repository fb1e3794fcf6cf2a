"""The event store as something to read from: pages, the cursor, followers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from controlplane.db import append_event, open_db, transaction
from controlplane.errors import ValidationFailed
from controlplane.event_log import BATCH, EventFilter, EventLog
from controlplane.events import (
    DomainEvent,
    EventBus,
    ModelLoaded,
    ModelRegistered,
    ModelUnloaded,
    ModelUnregistered,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlite_utils import Database

ALL = EventFilter()


@pytest.fixture
def db() -> Iterator[Database]:
    database = open_db(":memory:")
    yield database
    database.close()


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
def log(db: Database, bus: EventBus) -> EventLog:
    return EventLog(db, bus)


def write(db: Database, *events: DomainEvent) -> None:
    with transaction(db):
        for event in events:
            append_event(db, event)


def registered(model_id: str) -> ModelRegistered:
    return ModelRegistered(model_id=model_id, task_type="txt2embed", version="main")


def unloaded(model_id: str) -> ModelUnloaded:
    return ModelUnloaded(model_id=model_id, version="main", reason="manual", uptime_seconds=1.0)


def test_an_event_comes_back_with_its_whole_envelope(db: Database, log: EventLog) -> None:
    event = registered("a/ü")
    write(db, event)
    (found,) = log.page(ALL).items
    assert found.sequence == 1
    assert found.event_id == event.event_id
    assert found.event_type == "model.registered"
    assert found.aggregate_type == "model_catalog"
    assert found.payload == {"model_id": "a/ü", "task_type": "txt2embed", "version": "main"}
    assert found.timestamp == event.timestamp
    assert found.version == 1


def test_pages_begin_with_the_latest(db: Database, log: EventLog) -> None:
    write(db, *(registered(f"a/b{n}") for n in range(5)))
    page = log.page(ALL, page=2, page_size=2)
    assert [event.sequence for event in page.items] == [3, 2]
    assert (page.total_items, page.total_pages) == (5, 3)
    assert log.page(ALL, page=4, page_size=2).items == ()


def test_every_filter(db: Database, log: EventLog) -> None:
    now = utc_now()
    old = ModelUnregistered(aggregate_id="x", model_id="a/b", timestamp=now - timedelta(days=2))
    write(db, old, registered("a/b"), unloaded("a/b"), registered("c/d"))

    def numbers(**fields: object) -> list[int]:
        return [event.sequence for event in log.page(EventFilter(**fields)).items]

    assert numbers(event_type="model.registered") == [4, 2]
    assert numbers(event_type="model.un*") == [3, 1]
    assert numbers(event_type="model.*") == numbers(event_type="*") == [4, 3, 2, 1]
    assert numbers(event_type="model") == numbers(event_type="lock.*") == []
    assert numbers(model_id="a/b") == [3, 2, 1]
    assert numbers(aggregate_id="x") == [1]
    assert numbers(since=now - timedelta(days=1)) == [4, 3, 2]
    assert numbers(until=now - timedelta(days=1)) == [1]
    assert numbers(model_id="a/b", event_type="model.r*", since=now - timedelta(days=1)) == [2]


def test_few_of_many_are_found_as_well_as_many(db: Database, log: EventLog) -> None:
    write(db, *(registered("a/b") for _ in range(300)), unloaded("a/b"))
    assert log.page(EventFilter(event_type="model.unl*")).items[0].sequence == 301
    assert log.page(EventFilter(event_type="model.reg*")).items[0].sequence == 300


def test_the_cursor_goes_forward(db: Database, log: EventLog) -> None:
    write(db, *(registered(f"a/b{n}") for n in range(4)))
    assert [event.sequence for event in log.after(2, ALL)] == [3, 4]
    assert [event.sequence for event in log.after(0, ALL, limit=1)] == [1]
    assert log.after(4, ALL) == []
    assert log.last() == 4


def test_a_number_is_never_used_twice(db: Database, log: EventLog) -> None:
    write(db, registered("a/b"), registered("c/d"))
    db.execute("DELETE FROM event_store WHERE sequence = 2")
    db.execute("VACUUM")
    write(db, registered("e/f"))
    assert [event.sequence for event in log.after(0, ALL)] == [1, 3]


@pytest.mark.parametrize(
    ("index", "condition"),
    [
        ("idx_event_store_event_type", "event_type = 'x'"),
        ("idx_event_store_model_id", "json_extract(payload, '$.model_id') = 'x'"),
        ("idx_event_store_aggregate_id", "aggregate_id = 'x'"),
        ("idx_event_store_timestamp", "timestamp >= 'x' AND timestamp < 'y'"),
    ],
)
def test_every_filter_has_its_index(db: Database, index: str, condition: str) -> None:
    sql = f"EXPLAIN QUERY PLAN SELECT count(*) FROM event_store WHERE {condition}"
    assert index in db.execute(sql).fetchone()[3]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"page": 0}, "page"),
        ({"page": 10**20}, "page"),
        ({"page_size": 101}, "page_size"),
    ],
)
def test_wrong_pages_are_named(log: EventLog, arguments: dict[str, int], field: str) -> None:
    with pytest.raises(ValidationFailed, match=field):
        log.page(ALL, **arguments)


@pytest.mark.parametrize("event_type", ["", "*.loaded", "x" * 300])
def test_a_wrong_type_is_named(log: EventLog, event_type: str) -> None:
    with pytest.raises(ValidationFailed, match="event_type"):
        log.page(EventFilter(event_type=event_type))


def test_a_time_that_ends_before_it_begins_is_named(log: EventLog) -> None:
    now = utc_now()
    with pytest.raises(ValidationFailed, match="until"):
        log.page(EventFilter(since=now, until=now))


# -- following -----------------------------------------------------------------------------------


async def test_a_follower_gets_what_was_and_what_comes(
    db: Database, bus: EventBus, log: EventLog
) -> None:
    write(db, registered("a/b"))
    async with aclosing(log.follow(0, ALL, idle_seconds=30)) as batches:
        assert [event.sequence for event in await anext(batches)] == [1]
        coming = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        event = unloaded("a/b")
        write(db, event)
        bus.publish(event)
        assert [found.event_type for found in await coming] == ["model.unloaded"]


async def test_a_follower_misses_nothing_of_thousands(db: Database, log: EventLog) -> None:
    write(db, *(registered("a/b") for _ in range(2 * BATCH + 5)))
    seen: list[int] = []
    async with aclosing(log.follow(3, ALL, idle_seconds=30)) as batches:
        async for batch in batches:
            assert len(batch) <= BATCH
            seen += [event.sequence for event in batch]
            if seen[-1] == 2 * BATCH + 5:
                break
    assert seen == list(range(4, 2 * BATCH + 6))


async def test_a_silent_time_gives_an_empty_batch(log: EventLog) -> None:
    async with aclosing(log.follow(0, ALL, idle_seconds=0.01)) as batches:
        assert await anext(batches) == []


async def test_closing_ends_followers_now_and_later(log: EventLog) -> None:
    batches = log.follow(0, ALL, idle_seconds=30)
    waiting = asyncio.ensure_future(anext(batches, "end"))
    await asyncio.sleep(0)
    log.close()
    assert await waiting == "end"
    assert [batch async for batch in log.follow(0, ALL, idle_seconds=30)] == []


async def test_a_follower_that_left_is_forgotten(
    db: Database, bus: EventBus, log: EventLog
) -> None:
    write(db, registered("a/b"))
    async with aclosing(log.follow(0, ALL, idle_seconds=30)) as batches:
        await anext(batches)
        assert len(log._waiting) == 1
    assert log._waiting == set()


def test_events_of_the_lifecycle_name_their_aggregate(db: Database, log: EventLog) -> None:
    write(
        db,
        ModelLoaded(model_id="a/b", version="main", memory_mb=1.0, load_seconds=1.0),
    )
    (event,) = log.page(ALL).items
    assert len(event.aggregate_id) == 36
