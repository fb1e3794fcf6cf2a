"""What is shown of the lifecycle: events as moves, history, hits and misses, who waits for what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from controlplane import events
from controlplane.errors import LoadFailed
from controlplane.lifecycle.history import History
from controlplane.lifecycle.replay import replay
from controlplane.lifecycle.state import MOVES, ModelState
from tests.unit.test_scheduler import A, B, World, servable, settle

if TYPE_CHECKING:
    from controlplane.lifecycle.resident import ResidentView

TOLD = {"model_id": "a/b", "version": "main"}


# -- events ------------------------------------------------------------------------------------


class Watched(World):
    """A world that compares what its events tell with what is, after every event."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.moves: set[tuple[ModelState, ModelState]] = set()

    def check(self) -> None:
        states = replay((event.event_type, event.payload()) for event in self.told)
        for resident in self.scheduler.residents():
            key = (resident.model_id, resident.servable.version)
            assert states.get(key, ModelState.UNLOADED) is resident.state


async def test_every_move_tells_an_event() -> None:
    world = Watched(budget_mb=150.0)
    await world.loaded(A)
    world.check()
    waiting = asyncio.create_task(world.use(B))  # evicts A
    await settle()
    world.check()
    await world.effects.finish_unload(A)
    world.check()
    world.effects.loads.pop(B.model_id).set_exception(LoadFailed(B.model_id, "no"))
    with pytest.raises(LoadFailed):
        await waiting
    world.check()
    world.scheduler.residents()[1].retry_at = 0.0
    again = asyncio.create_task(world.use(B))
    await settle()
    world.check()
    world.scheduler.server_lost()
    world.check()
    world.scheduler.server_restored()
    await settle()
    await world.effects.finish_load(B)
    await again
    (b,) = (r for r in world.scheduler.residents() if r.model_id == B.model_id)
    world.scheduler.declare_unhealthy(b, "it is silent")
    world.check()
    await world.effects.finish_unload(B)
    world.check()
    await world.effects.finish_load(B)  # it comes back by itself
    world.check()
    names = world.names()
    assert names.count("model.load.requested") == names.count("model.loaded") + names.count(
        "model.load.failed"
    )
    assert names.count("model.unload.requested") == names.count("model.unloaded") == 2
    assert [n for n in names if n.startswith("triton.")] == ["triton.lost", "triton.restored"]


async def test_a_model_that_is_given_up_is_told() -> None:
    world = Watched()
    await world.loaded(A)
    (a,) = world.scheduler.residents()
    for _ in range(20):
        world.scheduler.declare_unhealthy(a, "it is silent")
        await world.effects.finish_unload(A)
        world.check()
        if a.state is ModelState.FAILED:
            break
        a.retry_at = 0.0
        world.scheduler.want(A)
        await world.effects.finish_load(A)
        world.check()
    assert a.state is ModelState.FAILED
    last = [event for event in world.told if event.event_type == "model.health.changed"][-1]
    assert last.payload()["new_state"] == "failed"


def test_the_events_cover_the_state_machine() -> None:
    reachable = set(
        replay(
            (event_type, {"model_id": event_type, "version": "v", "new_state": "unhealthy"})
            for event_type in (
                *("model.load.requested", "model.loaded", "model.load.failed"),
                *("model.failure.cleared", "model.health.changed"),
                *("model.unload.requested", "model.unloaded"),
            )
        ).values()
    )
    assert reachable == set(MOVES)


# -- history -----------------------------------------------------------------------------------


def test_history_sums_up_loads_failures_and_evictions() -> None:
    bus = events.EventBus()
    history = History(bus)
    for seconds in (1.0, 3.0):
        bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=seconds, **TOLD))
    bus.publish(events.ModelLoadFailed(error_message="no weights", **TOLD))
    bus.publish(events.ModelUnloaded(reason="lru_eviction", uptime_seconds=1, **TOLD))
    last = events.ModelUnloaded(reason="manual", uptime_seconds=1, **TOLD)
    bus.publish(last)
    found = history.of("a/b", "main")
    assert (found.loads, found.last_load_seconds, found.max_load_seconds) == (2, 3.0, 3.0)
    assert found.mean_load_seconds == 2.0
    assert (found.failures, found.last_failure) == (1, "no weights")
    assert (found.evictions, found.last_unload_reason) == (1, "manual")
    assert found.since == last.timestamp
    assert history.of("a/b", "other").loads == 0
    bus.publish(events.ModelUnregistered(model_id="a/b"))
    assert history.of("a/b", "main").loads == 0


# -- hits, misses, waiters ---------------------------------------------------------------------


def seen(world: World, name: str) -> ResidentView:
    return next(v for v in world.scheduler.every_view() if v.model_id == f"org/{name}")


async def test_the_books_of_a_deleted_model_are_closed() -> None:
    world = World(budget_mb=300.0)
    await world.loaded(A)
    await world.loaded(B)
    world.scheduler.forget(A.model_id)  # in memory: it stays until it has left
    assert seen(world, "a").misses == 1
    unloading = asyncio.create_task(world.scheduler.unload(A.model_id))
    await settle()
    await world.effects.finish_unload(A)
    await unloading
    world.scheduler.forget(A.model_id, A.triton_version + 1)
    assert seen(world, "a").misses == 1
    world.scheduler.forget(A.model_id)
    assert [view.model_id for view in world.scheduler.every_view()] == [B.model_id]


async def test_hits_misses_and_coalesced_requests() -> None:
    world = World(budget_mb=150.0)
    first = [asyncio.create_task(world.use(A)) for _ in range(3)]
    await world.effects.finish_load(A)
    await asyncio.gather(*first)
    for _ in range(4):
        await world.use(A)
    view = seen(world, "a")
    assert (view.hits, view.misses, view.coalesced, view.request_count) == (4, 3, 2, 7)
    other = asyncio.create_task(world.use(B))
    await world.effects.finish_unload(A)
    await world.effects.finish_load(B)
    await other
    view = seen(world, "a")  # kept over the end of its residency
    assert (view.state, view.hits, view.misses) == (ModelState.UNLOADED, 4, 3)
    back = asyncio.create_task(world.use(A))
    await world.effects.finish_unload(B)
    await world.effects.finish_load(A)
    await back
    await world.use(A)
    view = seen(world, "a")
    assert (view.hits, view.misses, view.request_count) == (5, 4, 2)
    assert view.history.loads == 2


async def test_a_request_that_gives_up_counts_as_a_miss_only() -> None:
    world = World()
    task = asyncio.create_task(world.use(A))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    view = seen(world, "a")
    assert (view.hits, view.misses) == (0, 1)


async def test_who_waits_is_shown_in_order_with_the_cause() -> None:
    world = World(budget_mb=150.0)
    hold = asyncio.Event()
    user = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    waiters = [
        asyncio.create_task(world.use(B, priority=3)),
        asyncio.create_task(world.use(servable("c"), priority=1)),
        asyncio.create_task(world.use(servable("a", version=2), priority=2)),
    ]
    await settle()
    shown = [(w.model_id, w.priority, w.waits_for) for w in world.scheduler.waiting()]
    assert shown == [
        ("org/c", 1, "room"),
        ("org/a", 2, "version_switch"),
        ("org/b", 3, "room"),
    ]
    world.scheduler.server_lost()
    assert {w.waits_for for w in world.scheduler.waiting()} == {"triton"}
    assert not world.scheduler.server_up
    for task in (*waiters, user):
        task.cancel()
    await asyncio.gather(*waiters, user, return_exceptions=True)
    assert world.scheduler.waiting() == ()


async def test_a_failed_model_tells_when_it_may_be_tried_again() -> None:
    world = World()
    task = asyncio.create_task(world.use(A))
    await settle()
    (waiting,) = world.scheduler.waiting()
    assert (waiting.waits_for, waiting.model_id) == ("load", "org/a")
    world.effects.loads.pop(A.model_id).set_exception(LoadFailed(A.model_id, "no weights"))
    with pytest.raises(LoadFailed):
        await task
    view = seen(world, "a")
    assert view.retry_at is not None
    assert 0 < (view.retry_at - events.utc_now()).total_seconds() < 2
    assert view.history.failures == 1
    assert "no weights" in (view.history.last_failure or "")
    assert view.history.since is not None
    assert view.memory_source == "estimated"
