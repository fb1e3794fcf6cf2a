"""The rules of scheduler.py, against effects that end when the test says so."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from controlplane import events
from controlplane.errors import (
    InsufficientMemory,
    InvalidStateTransition,
    LoadFailed,
    LoadInterrupted,
    LoadTimeout,
    ModelAlreadyLoaded,
    ModelNotLoaded,
    ServiceUnavailable,
)
from controlplane.lifecycle import health, transitions
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.policy import Residency
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.state import ModelState
from controlplane.registry.model import Servable, TaskType

# For the rules that are older than turns (rule 9): idle models leave at once, busy ones never.
NO_TURNS = Residency(shortest_turn=0.0, longest_turn=0.0, patience=1e6)


def servable(name: str, need_mb: float = 100.0, version: int = 1) -> Servable:
    return Servable(
        model_id=f"org/{name}",
        version=f"v{version}",
        version_id=f"{name}-{version}",
        task_type=TaskType.TXT2EMBED,
        triton_name=f"org--{name}",
        triton_version=version,
        need_mb=need_mb,
    )


@dataclass
class ManualEffects:
    """Effects whose ends the test decides; records what was started."""

    loads: dict[str, asyncio.Future[Loaded]] = field(default_factory=dict)
    unloads: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    kills: int = 0

    async def load(self, target: Servable, timeout: float) -> Loaded:
        self.started.append(f"load {target.model_id}")
        self.loads[target.model_id] = asyncio.get_running_loop().create_future()
        return await self.loads[target.model_id]

    async def unload(self, target: Servable, timeout: float) -> None:
        self.started.append(f"unload {target.model_id}")
        self.unloads[target.model_id] = asyncio.get_running_loop().create_future()
        await self.unloads[target.model_id]

    def kill_server(self) -> bool:
        self.kills += 1
        return False

    async def finish_load(self, target: Servable, memory_mb: float | None = None) -> None:
        await until(lambda: target.model_id in self.loads)
        self.loads.pop(target.model_id).set_result(
            Loaded(memory_mb=memory_mb, process_id=None, seconds=0.1, response_time_ms=1.0)
        )
        await settle()

    async def finish_unload(self, target: Servable) -> None:
        await until(lambda: target.model_id in self.unloads)
        self.unloads.pop(target.model_id).set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def until(condition: object) -> None:
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never came true")


def soon(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


class World:
    """A scheduler, its effects and the events it told."""

    def __init__(self, budget_mb: float = 250.0, max_models: int = 10) -> None:
        self.effects = ManualEffects()
        self.told: list[events.DomainEvent] = []
        self.recorded: list[tuple[str, float]] = []
        bus = events.EventBus()
        bus.subscribe(events.DomainEvent, self.told.append)
        self.scheduler = Scheduler(
            self.effects,
            bus,
            budget_mb=budget_mb,
            max_models=max_models,
            load_timeout=30.0,
            residency=NO_TURNS,
            record_memory=lambda s, mb: self.recorded.append((s.model_id, mb)),
        )

    async def use(self, target: Servable, hold: asyncio.Event | None = None, **kwargs: int) -> None:
        async with self.scheduler.lease(target, deadline=soon(), **kwargs):
            if hold is not None:
                await hold.wait()

    async def loaded(self, target: Servable, memory_mb: float | None = None) -> None:
        task = asyncio.create_task(self.use(target))
        await self.effects.finish_load(target, memory_mb)
        await task

    def state(self, target: Servable) -> ModelState | None:
        shown = self.scheduler.view(target.model_id)
        return shown.state if shown else None

    def names(self) -> list[str]:
        return [event.event_type for event in self.told]


A, B, C = servable("a"), servable("b"), servable("c")


async def test_concurrent_first_requests_cause_one_load() -> None:
    world = World()
    tasks = [asyncio.create_task(world.use(A)) for _ in range(100)]
    await world.effects.finish_load(A)
    await asyncio.gather(*tasks)
    assert world.effects.started == ["load org/a"]
    assert world.scheduler.view("org/a").request_count == 100  # type: ignore[union-attr]


async def test_a_loaded_model_is_leased_without_awaiting() -> None:
    world = World()
    await world.loaded(A)
    entering = world.scheduler.lease(A, deadline=soon()).__aenter__()
    with pytest.raises(StopIteration):  # it ran to its end without ever suspending
        entering.send(None)


async def test_the_least_recently_used_idle_model_makes_room() -> None:
    world = World()
    await world.loaded(A)
    await world.loaded(B)
    await world.use(A)
    task = asyncio.create_task(world.use(C))
    await world.effects.finish_unload(B)
    await world.effects.finish_load(C)
    await task
    assert world.state(A) is ModelState.LOADED
    assert world.state(B) is None
    assert "model.evicted" in world.names()


async def test_a_busy_model_is_never_evicted_and_the_waiter_gets_the_room_it_leaves() -> None:
    world = World(budget_mb=100.0)
    hold = asyncio.Event()
    busy = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    waiting = asyncio.create_task(world.use(B))
    await settle()
    assert world.effects.started == ["load org/a"]
    hold.set()
    await busy
    await world.effects.finish_unload(A)
    await world.effects.finish_load(B)
    await waiting


async def test_memory_counts_until_the_unload_has_ended() -> None:
    world = World(budget_mb=100.0)
    await world.loaded(A)
    task = asyncio.create_task(world.use(B))
    await until(lambda: "org/a" in world.effects.unloads)
    await settle()
    assert "load org/b" not in world.effects.started
    assert world.scheduler.used_mb == 100.0
    await world.effects.finish_unload(A)
    await world.effects.finish_load(B)
    await task


async def test_a_model_that_can_never_fit_is_refused_before_anybody_leaves() -> None:
    world = World()
    await world.loaded(A)
    with pytest.raises(InsufficientMemory, match="more than the whole budget"):
        await world.use(servable("huge", 251.0))
    assert world.effects.started == ["load org/a"]


async def test_the_number_of_models_is_limited_too() -> None:
    world = World(max_models=1)
    await world.loaded(A)
    task = asyncio.create_task(world.use(B))
    await world.effects.finish_unload(A)
    await world.effects.finish_load(B)
    await task


async def test_a_failed_load_fails_all_its_waiters_then_backs_off() -> None:
    world = World()
    tasks = [asyncio.create_task(world.use(A)) for _ in range(3)]
    await until(lambda: "org/a" in world.effects.loads)
    world.effects.loads.pop("org/a").set_exception(LoadFailed("org/a", "no such file"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [LoadFailed] * 3
    with pytest.raises(LoadFailed, match="no such file") as caught:
        await world.use(A)
    assert 0 < caught.value.retry_after <= 1.2  # type: ignore[operator]
    assert world.effects.started == ["load org/a"]
    assert world.state(A) is ModelState.FAILED
    assert world.scheduler.used_mb == 0.0


async def load_begins(world: World, target: Servable) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while target.model_id not in world.effects.loads:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.001)


async def fail_load(world: World, target: Servable, error: Exception) -> None:
    await load_begins(world, target)
    world.effects.loads.pop(target.model_id).set_exception(error)
    await settle()


async def test_a_load_whose_process_died_is_tried_again_for_those_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transitions, "BACKOFF_BASE", 0.005)
    world = World()
    first = asyncio.create_task(world.use(A))
    await fail_load(world, A, LoadInterrupted("org/a", "killed"))
    second = asyncio.create_task(world.use(A))  # in the backoff: in line, not refused
    await fail_load(world, A, LoadInterrupted("org/a", "killed"))
    await load_begins(world, A)
    await world.effects.finish_load(A)
    await asyncio.gather(first, second)
    assert world.effects.started == ["load org/a"] * 3


async def test_a_load_whose_process_always_dies_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transitions, "BACKOFF_BASE", 0.005)
    world = World()
    task = asyncio.create_task(world.use(A))
    for _ in range(4):
        await fail_load(world, A, LoadInterrupted("org/a", "killed"))
    with pytest.raises(LoadInterrupted):
        await task
    assert world.state(A) is ModelState.FAILED


async def test_room_is_made_for_all_who_wait_at_a_time() -> None:
    world = World(budget_mb=300.0)
    others = [servable(name) for name in "xyz"]
    for other in others:
        await world.loaded(other)
    tasks = [asyncio.create_task(world.use(target)) for target in (A, B)]
    await settle()
    assert world.effects.started[3:] == ["unload org/x", "unload org/y"]
    # What is freed is promised to the first in line, whoever's memory it was.
    await world.effects.finish_unload(others[1])
    assert world.effects.started[5:] == ["load org/a"]
    await world.effects.finish_unload(others[0])
    assert world.effects.started[6:] == ["load org/b"]
    for target in (A, B):
        await world.effects.finish_load(target)
    await asyncio.gather(*tasks)


async def test_an_explicit_load_does_not_wait_for_the_backoff() -> None:
    world = World()
    task = asyncio.create_task(world.use(A))
    await until(lambda: "org/a" in world.effects.loads)
    world.effects.loads.pop("org/a").set_exception(LoadFailed("org/a", "no"))
    await asyncio.gather(task, return_exceptions=True)
    again = asyncio.create_task(world.scheduler.load(A, deadline=soon()))
    await world.effects.finish_load(A)
    assert (await again).state is ModelState.LOADED
    with pytest.raises(ModelAlreadyLoaded):
        await world.scheduler.load(A, deadline=soon())


async def test_a_bug_in_an_effect_still_answers_the_waiters() -> None:
    world = World()
    task = asyncio.create_task(world.use(A))
    await until(lambda: "org/a" in world.effects.loads)
    world.effects.loads.pop("org/a").set_exception(RuntimeError("bug"))
    with pytest.raises(LoadFailed, match="bug"):
        await task


async def test_waiting_ends_at_the_deadline_and_leaves_nothing_behind() -> None:
    world = World(budget_mb=100.0)
    hold = asyncio.Event()
    busy = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    with pytest.raises(InsufficientMemory) as caught:
        async with world.scheduler.lease(B, deadline=soon(0.01)):
            pass
    assert caught.value.retry_after
    hold.set()
    await busy
    await settle()
    assert world.effects.started == ["load org/a"]  # B is not wanted any more


async def test_a_load_that_outlasts_its_caller_goes_on_for_the_next() -> None:
    world = World()
    with pytest.raises(LoadTimeout):
        async with world.scheduler.lease(A, deadline=soon(0.01)):
            pass
    await world.effects.finish_load(A)
    await world.use(A)
    assert world.effects.started == ["load org/a"]


async def test_a_caller_cancelled_in_the_moment_of_its_grant_releases_it() -> None:
    world = World()
    task = asyncio.create_task(world.use(A))
    await until(lambda: "org/a" in world.effects.loads)
    world.effects.loads.pop("org/a").set_result(Loaded(None, None, 0.1, 1.0))
    await until(lambda: world.state(A) is ModelState.LOADED)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert world.scheduler.view("org/a").active_requests == 0  # type: ignore[union-attr]


async def test_unload_drains_first() -> None:
    world = World()
    hold = asyncio.Event()
    busy = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    unloading = asyncio.create_task(world.scheduler.unload("org/a"))
    await settle()
    assert world.state(A) is ModelState.UNLOADING
    assert "unload org/a" not in world.effects.started
    hold.set()
    await busy
    await world.effects.finish_unload(A)
    assert await unloading == 100.0
    with pytest.raises(ModelNotLoaded):
        await world.scheduler.unload("org/a")


async def test_a_request_during_an_unload_loads_the_model_again() -> None:
    world = World()
    await world.loaded(A)
    unloading = asyncio.create_task(world.scheduler.unload("org/a"))
    await until(lambda: "org/a" in world.effects.unloads)
    task = asyncio.create_task(world.use(A))
    await world.effects.finish_unload(A)
    await world.effects.finish_load(A)
    await asyncio.gather(task, unloading)
    assert world.state(A) is ModelState.LOADED


async def test_a_loading_model_cannot_be_unloaded() -> None:
    world = World()
    task = asyncio.create_task(world.use(A))
    await until(lambda: "org/a" in world.effects.loads)
    with pytest.raises(InvalidStateTransition):
        await world.scheduler.unload("org/a")
    await world.effects.finish_load(A)
    await task


async def test_a_failing_unload_is_repeated_when_the_server_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controlplane.lifecycle.transitions.UNLOAD_RETRY", 0.0)
    world = World()
    await world.loaded(A)
    unloading = asyncio.create_task(world.scheduler.unload("org/a"))
    await until(lambda: "org/a" in world.effects.unloads)
    world.effects.unloads.pop("org/a").set_exception(ServiceUnavailable("no answer"))
    await world.effects.finish_unload(A)
    await unloading
    assert world.effects.kills == 1


async def test_the_measured_size_replaces_the_reservation_and_is_recorded() -> None:
    world = World()
    await world.loaded(A, memory_mb=180.0)
    assert world.scheduler.used_mb == 180.0
    assert world.recorded == [("org/a", 180.0)]
    (resident,) = world.scheduler.residents()
    world.scheduler.measured(resident, 181.0)
    assert len(world.recorded) == 1  # noise is not worth a write


async def test_growth_beyond_the_budget_evicts_idle_models() -> None:
    world = World()
    await world.loaded(A)
    await world.loaded(B)
    b = next(r for r in world.scheduler.residents() if r.model_id == "org/b")
    await world.use(B)
    world.scheduler.measured(b, 200.0)
    await world.effects.finish_unload(A)
    assert world.state(A) is None
    assert world.scheduler.used_mb == 200.0


async def test_two_versions_of_a_model_are_not_in_memory_together() -> None:
    world = World()
    old, new = servable("a", version=1), servable("a", version=2)
    await world.loaded(old)
    task = asyncio.create_task(world.use(new))
    await world.effects.finish_unload(old)
    await world.effects.finish_load(new)
    await task
    assert [v.version for v in world.scheduler.loaded()] == ["v2"]


async def test_urgent_waiters_are_loaded_first() -> None:
    world = World(budget_mb=100.0)
    hold = asyncio.Event()
    busy = asyncio.create_task(world.use(A, hold))
    await world.effects.finish_load(A)
    low = asyncio.create_task(world.use(B, priority=4))
    await settle()
    high = asyncio.create_task(world.use(C, priority=1))
    await settle()
    hold.set()
    await busy
    await world.effects.finish_unload(A)
    await world.effects.finish_load(C)
    await high
    await world.effects.finish_unload(C)
    await world.effects.finish_load(B)
    await low


async def test_a_lost_server_takes_the_models_but_not_the_waiters() -> None:
    world = World()
    await world.loaded(A)
    waiting = asyncio.create_task(world.use(B))
    await until(lambda: "org/b" in world.effects.loads)
    world.scheduler.server_lost()
    assert world.scheduler.used_mb == 0.0
    await settle()
    world.effects.loads.clear()
    world.scheduler.server_restored()
    await world.effects.finish_load(B)
    await waiting
    unloaded = [e for e in world.told if isinstance(e, events.ModelUnloaded)]
    assert [(e.model_id, e.reason) for e in unloaded] == [("org/a", "server_lost")]


async def test_requests_wait_for_a_lost_server_to_their_deadline() -> None:
    world = World()
    world.scheduler.server_lost()
    with pytest.raises(ServiceUnavailable, match="restarted"):
        async with world.scheduler.lease(A, deadline=soon(0.01)):
            pass


async def test_an_unload_that_the_servers_death_overtakes_ends() -> None:
    world = World()
    await world.loaded(A)
    unloading = asyncio.create_task(world.scheduler.unload("org/a"))
    await until(lambda: "org/a" in world.effects.unloads)
    world.scheduler.server_lost()
    await unloading


async def test_three_failed_checks_in_a_row_take_a_model_out_of_service() -> None:
    world = World()
    await world.loaded(A)
    (resident,) = world.scheduler.residents()
    for _ in range(3):
        assert world.state(A) is ModelState.LOADED
        status = health.after_failure(resident.health, events.utc_now(), "no answer")
        world.scheduler.checked(resident, status)
    assert "model.health.changed" in world.names()
    await world.effects.finish_unload(A)
    assert world.state(A) is ModelState.LOADING  # it is healed, though nobody asks for it
    await world.effects.finish_load(A)
    assert world.state(A) is ModelState.LOADED


async def test_an_idle_model_leaves_when_its_time_has_run_out() -> None:
    world = World()
    await world.loaded(A)
    (resident,) = world.scheduler.residents()
    world.scheduler.unload_idle(resident)
    await world.effects.finish_unload(A)
    assert [e.reason for e in world.told if isinstance(e, events.ModelUnloaded)] == ["idle_ttl"]


async def test_close_fails_waiters_and_unloads_the_rest() -> None:
    world = World()
    await world.loaded(A)
    waiting = asyncio.create_task(world.use(B))
    await until(lambda: "org/b" in world.effects.loads)
    closing = asyncio.create_task(world.scheduler.close())
    with pytest.raises(ServiceUnavailable):
        await waiting
    with pytest.raises(ServiceUnavailable):
        await world.use(C)
    await world.effects.finish_load(B)
    await world.effects.finish_unload(A)
    await world.effects.finish_unload(B)
    await closing
    assert world.scheduler.used_mb == 0.0
