"""Rule 10: who stays, and who comes back by itself."""

from __future__ import annotations

import asyncio

import pytest

from controlplane import events
from controlplane.errors import InsufficientMemory, LoadFailed, ModelUnhealthy, ServiceUnavailable
from controlplane.lifecycle import transitions
from controlplane.lifecycle.policy import ModelPolicy
from controlplane.lifecycle.state import ModelState
from tests.unit.test_scheduler import A, B, C, World, servable, settle, soon, until

KEPT = ModelPolicy(keep_loaded=True)


async def lose_and_restore(world: World) -> None:
    world.scheduler.server_lost()
    await settle()
    world.effects.loads.clear()
    world.effects.started.clear()
    world.scheduler.server_restored()
    await settle()


async def test_what_was_loaded_when_the_server_died_comes_back_the_latest_used_first() -> None:
    world = World()
    await world.loaded(A)
    await world.loaded(B)
    await asyncio.sleep(0.001)
    await world.use(A)
    await lose_and_restore(world)
    assert world.effects.started == ["load org/a", "load org/b"]
    await world.effects.finish_load(A)
    await world.effects.finish_load(B)
    assert [v.state for v in world.scheduler.loaded()] == [ModelState.LOADED] * 2


async def test_who_waits_is_loaded_before_what_was_loaded() -> None:
    world = World(budget_mb=200.0)
    await world.loaded(A)
    await world.loaded(B)
    await world.use(B)
    world.scheduler.server_lost()
    waiting = asyncio.create_task(world.use(C))
    await settle()
    world.effects.loads.clear()
    world.effects.started.clear()
    world.scheduler.server_restored()
    await settle()
    assert world.effects.started == ["load org/c", "load org/b"]
    await world.effects.finish_load(C)
    await waiting
    await world.effects.finish_load(B)
    await settle()
    # Nobody leaves for A; it comes with its next request.
    assert world.effects.started == ["load org/c", "load org/b"]


async def test_what_was_evicted_or_unloaded_before_does_not_come_back() -> None:
    world = World()
    await world.loaded(A)
    unloading = asyncio.create_task(world.scheduler.unload("org/a"))
    await world.effects.finish_unload(A)
    await unloading
    await lose_and_restore(world)
    assert world.effects.started == []


async def test_a_load_that_finds_no_server_keeps_its_waiters_for_the_next_server() -> None:
    world = World()
    waiting = asyncio.create_task(world.use(A))
    await until(lambda: "org/a" in world.effects.loads)
    world.effects.loads.pop("org/a").set_exception(ServiceUnavailable("connection refused"))
    await settle()
    assert not waiting.done()
    await lose_and_restore(world)
    await world.effects.finish_load(A)
    await waiting


async def test_who_waits_for_a_server_that_is_not_there_is_told_so_in_the_end() -> None:
    world = World()

    async def brief() -> None:
        async with world.scheduler.lease(A, deadline=soon(0.05)):
            pass

    waiting = asyncio.create_task(brief())
    await until(lambda: "org/a" in world.effects.loads)
    world.effects.loads.pop("org/a").set_exception(ServiceUnavailable("connection refused"))
    with pytest.raises(ServiceUnavailable, match="connection refused"):
        await waiting


async def test_an_unhealthy_model_is_healed_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "BACKOFF_BASE", 0.001)
    world = World()
    await world.loaded(A)
    for _ in range(transitions.HEALING_ATTEMPTS):
        (resident,) = world.scheduler.residents()
        world.scheduler.declare_unhealthy(resident, "its process has died")
        await world.effects.finish_unload(A)
        for _ in range(50):
            await asyncio.sleep(0.001)
            if "org/a" in world.effects.loads:
                break
        await world.effects.finish_load(A)
    world.scheduler.declare_unhealthy(resident, "its process has died")
    await world.effects.finish_unload(A)
    shown = world.scheduler.view("org/a")
    assert shown is not None
    assert shown.state is ModelState.FAILED
    assert "its process has died" in (shown.health_error or "")
    with pytest.raises(ModelUnhealthy) as caught:
        await world.use(A)
    assert (caught.value.retry_after or 0) > 30
    again = asyncio.create_task(world.scheduler.load(A, deadline=soon()))  # somebody says so
    await world.effects.finish_load(A)
    assert (await again).state is ModelState.LOADED


async def test_a_request_during_healing_waits_for_it() -> None:
    world = World()
    await world.loaded(A)
    (resident,) = world.scheduler.residents()
    resident.relapses = 2  # the next healing backs off
    world.scheduler.declare_unhealthy(resident, "no answer")
    await world.effects.finish_unload(A)
    waiting = asyncio.create_task(world.use(A))
    await settle()
    assert "org/a" not in world.effects.loads
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(ModelUnhealthy, match="no answer"):
        async with world.scheduler.lease(A, deadline=soon(0.01)):
            pass


async def test_a_removed_model_is_not_healed() -> None:
    world = World()
    await world.loaded(A)
    (resident,) = world.scheduler.residents()
    world.scheduler.declare_unhealthy(resident, "no answer")
    unloading = asyncio.create_task(world.scheduler.unload("org/a"))
    await world.effects.finish_unload(A)
    await unloading
    assert world.effects.started[-1] == "unload org/a"


async def test_a_kept_model_is_not_evicted_and_what_cannot_fit_beside_it_is_refused_at_once() -> (
    None
):
    world = World(budget_mb=200.0)
    world.scheduler.set_policy("org/a", KEPT)
    await world.loaded(A)
    await world.loaded(B)
    task = asyncio.create_task(world.use(C))
    await world.effects.finish_unload(B)
    await world.effects.finish_load(C)
    await task
    assert world.state(A) is ModelState.LOADED
    with pytest.raises(InsufficientMemory, match="modelmora release") as caught:
        await world.use(servable("large", 150.0))
    assert caught.value.retry_after is None
    world.scheduler.set_policy("org/a", ModelPolicy())
    task = asyncio.create_task(world.use(servable("large", 150.0)))
    await world.effects.finish_unload(A)
    await world.effects.finish_unload(C)
    await world.effects.finish_load(servable("large", 150.0))
    await task


async def test_waiters_that_a_new_mark_leaves_without_hope_are_told() -> None:
    world = World(budget_mb=100.0)
    hold = asyncio.Event()
    busy = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    waiting = asyncio.create_task(world.use(B))
    await settle()
    world.scheduler.set_policy("org/a", KEPT)
    with pytest.raises(InsufficientMemory):
        await waiting
    hold.set()
    await busy


async def test_a_kept_model_is_loaded_without_a_request_and_evicts_idle_ones() -> None:
    world = World(budget_mb=100.0)
    await world.loaded(B)
    world.scheduler.set_policy("org/a", KEPT)
    world.scheduler.want(A)
    await world.effects.finish_unload(B)
    await world.effects.finish_load(A)
    assert world.state(A) is ModelState.LOADED
    await lose_and_restore(world)
    assert world.effects.started == ["load org/a"]
    await world.effects.finish_load(A)


async def test_a_kept_model_that_cannot_be_loaded_is_tried_again_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transitions, "BACKOFF_BASE", 0.001)
    monkeypatch.setattr(transitions, "BACKOFF_CAP", 0.001)
    world = World()
    world.scheduler.set_policy("org/a", KEPT)
    world.scheduler.want(A)
    for _ in range(6):
        for _ in range(50):
            if "org/a" in world.effects.loads:
                break
            await asyncio.sleep(0.001)
        world.effects.loads.pop("org/a").set_exception(LoadFailed("org/a", "so it is"))
        await settle()
    assert world.effects.started.count("load org/a") == 6


async def test_a_desired_load_that_fails_is_given_up_after_three_more_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transitions, "BACKOFF_BASE", 0.001)
    world = World()
    await world.loaded(A)
    await lose_and_restore(world)
    for _ in range(1 + transitions.BACKOFF_ATTEMPTS):
        for _ in range(50):
            if "org/a" in world.effects.loads:
                break
            await asyncio.sleep(0.001)
        world.effects.loads.pop("org/a").set_exception(LoadFailed("org/a", "so it is"))
        await settle()
    assert world.state(A) is ModelState.FAILED
    await asyncio.sleep(0.05)
    assert world.effects.started.count("load org/a") == 4


async def test_a_kept_model_leaves_for_its_own_other_version() -> None:
    world = World()
    world.scheduler.set_policy("org/a", KEPT)
    await world.loaded(A)
    other = servable("a", version=2)
    task = asyncio.create_task(world.use(other))
    await world.effects.finish_unload(A)
    await world.effects.finish_load(other)
    await task


async def test_a_model_without_idle_time_leaves_right_after_use() -> None:
    world = World()
    world.scheduler.set_policy("org/a", ModelPolicy(idle_ttl=0.0))
    hold = asyncio.Event()
    first = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    await world.use(A)
    assert world.state(A) is ModelState.LOADED  # the first request goes on
    hold.set()
    await first
    await world.effects.finish_unload(A)
    assert [e.reason for e in world.told if isinstance(e, events.ModelUnloaded)] == ["idle_ttl"]


async def test_a_use_elsewhere_counts_for_the_order_of_eviction() -> None:
    world = World()
    await world.loaded(A)
    await world.loaded(B)
    a = next(r for r in world.scheduler.residents() if r.model_id == "org/a")
    await asyncio.sleep(0.002)
    world.scheduler.used_elsewhere(a, events.utc_now().timestamp())
    task = asyncio.create_task(world.use(C))
    await world.effects.finish_unload(B)
    await world.effects.finish_load(C)
    await task
    before = a.last_used
    world.scheduler.used_elsewhere(a, events.utc_now().timestamp() - 1000)
    assert a.last_used == before


async def test_a_load_nobody_waits_for_any_more_is_not_started() -> None:
    world = World(budget_mb=100.0)
    hold = asyncio.Event()
    busy = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    waiting = asyncio.create_task(world.use(B))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    hold.set()
    await busy
    await settle()
    assert world.effects.started == ["load org/a"]
    assert world.scheduler.used_mb == 100.0


async def test_loads_run_in_parallel_when_memory_allows() -> None:
    world = World()
    tasks = [asyncio.create_task(world.use(model)) for model in (A, B)]
    await settle()
    assert world.effects.started == ["load org/a", "load org/b"]
    await world.effects.finish_load(B)
    await world.effects.finish_load(A)
    await asyncio.gather(*tasks)
