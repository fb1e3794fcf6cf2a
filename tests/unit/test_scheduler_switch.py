"""Rule 8 of scheduler.py: switching a model's version, against effects that end when told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest

from controlplane import events
from controlplane.errors import InsufficientMemory, LoadFailed, LoadTimeout, ServiceUnavailable
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.state import ModelState
from controlplane.lifecycle.switch import SwitchMode
from tests.unit.test_scheduler import NO_TURNS, servable, settle, soon, until

if TYPE_CHECKING:
    from controlplane.registry.model import Servable


@dataclass
class ManualEffects:
    """Effects whose ends the test decides, by version."""

    together: bool = True
    loads: dict[str, asyncio.Future[Loaded]] = field(default_factory=dict)
    unloads: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

    async def load(self, target: Servable, timeout: float) -> Loaded:
        self.started.append(f"load {target.version}")
        future = self.loads[target.version] = asyncio.get_running_loop().create_future()
        return await future

    async def unload(self, target: Servable, timeout: float) -> None:
        self.started.append(f"unload {target.version}")
        future = self.unloads[target.version] = asyncio.get_running_loop().create_future()
        await future

    def fit_together(self, one: Servable, other: Servable) -> bool:
        return self.together

    def kill_server(self) -> bool:
        return False


class World:
    """A model `a` with the versions v1 and v2, and a catalog that knows the current one."""

    def __init__(
        self, budget_mb: float = 250.0, max_models: int = 10, *, together: bool = True
    ) -> None:
        self.effects = ManualEffects(together)
        self.told: list[events.DomainEvent] = []
        bus = events.EventBus()
        bus.subscribe(events.DomainEvent, self.told.append)
        self.scheduler = Scheduler(
            self.effects,
            bus,
            budget_mb=budget_mb,
            max_models=max_models,
            load_timeout=30.0,
            residency=NO_TURNS,
        )
        self.current = 1
        self.commit_error: Exception | None = None

    async def ask(self, hold: asyncio.Event | None = None, version: int | None = None) -> str:
        """The version that served a request."""
        target = servable("a", version=version or self.current)
        if version is None:
            target = msgspec.structs.replace(target, floating=True)
        async with self.scheduler.lease(target, deadline=soon()) as leased:
            if hold is not None:
                await hold.wait()
            return leased.version

    def use(self, version: int, seconds: float = 10.0) -> asyncio.Task[SwitchMode]:
        def commit() -> None:
            if self.commit_error is not None:
                raise self.commit_error
            self.current = version

        return asyncio.create_task(
            self.scheduler.switch(
                lambda: servable("a", version=self.current),
                servable("a", version=version),
                deadline=soon(seconds),
                commit=commit,
            )
        )

    async def loaded(self, version: str) -> None:
        await until(lambda: version in self.effects.loads)
        self.effects.loads.pop(version).set_result(Loaded(None, None, 0.1, 1.0))
        await settle()

    async def fails_to_load(self, version: str) -> None:
        await until(lambda: version in self.effects.loads)
        self.effects.loads.pop(version).set_exception(LoadFailed("org/a", "so it is"))
        await settle()

    async def unloaded(self, version: str) -> None:
        await until(lambda: version in self.effects.unloads)
        self.effects.unloads.pop(version).set_result(None)
        await settle()

    async def start(self) -> None:
        """v1 is in memory."""
        asking = asyncio.create_task(self.ask())
        await self.loaded("v1")
        assert await asking == "v1"

    def in_memory(self) -> list[str]:
        return [r.servable.version for r in self.scheduler.residents() if r.holds_memory]


async def test_the_old_version_serves_until_the_new_one_is_loaded_then_the_new_one() -> None:
    world = World()
    await world.start()
    switching = world.use(2)
    await until(lambda: "v2" in world.effects.loads)
    assert await world.ask() == "v1"
    assert world.scheduler.used_mb == 200.0
    await world.loaded("v2")
    assert await world.ask() == "v2"
    assert world.effects.started == ["load v1", "load v2", "unload v1"]
    assert not switching.done()
    await world.unloaded("v1")
    assert await switching is SwitchMode.LIVE
    assert world.in_memory() == ["v2"]
    reasons = [e.reason for e in world.told if isinstance(e, events.ModelUnloaded)]
    assert reasons == ["version_switch"]


async def test_running_requests_end_on_the_old_version_before_it_leaves() -> None:
    world = World()
    await world.start()
    hold = asyncio.Event()
    running = asyncio.create_task(world.ask(hold))
    await settle()
    switching = world.use(2)
    await world.loaded("v2")
    assert "unload v1" not in world.effects.started
    hold.set()
    assert await running == "v1"
    await world.unloaded("v1")
    await switching


async def test_a_request_resolved_before_the_switch_goes_to_the_new_version() -> None:
    world = World()
    await world.start()
    stale = msgspec.structs.replace(servable("a", version=1), floating=True)
    switching = world.use(2)
    await world.loaded("v2")
    async with world.scheduler.lease(stale, deadline=soon()) as leased:
        assert leased.version == "v2"
    await world.unloaded("v1")
    await switching


async def test_a_new_version_that_fails_changes_nothing() -> None:
    world = World()
    await world.start()
    switching = world.use(2)
    await world.fails_to_load("v2")
    with pytest.raises(LoadFailed):
        await switching
    assert world.current == 1
    assert await world.ask() == "v1"
    assert world.effects.started == ["load v1", "load v2"]
    again = world.use(2)  # at once: its backoff is forgotten
    await world.loaded("v2")
    await world.unloaded("v1")
    assert await again is SwitchMode.LIVE


async def test_without_room_for_both_requests_wait_and_none_fails() -> None:
    world = World(budget_mb=150.0)
    await world.start()
    switching = world.use(2)
    await until(lambda: "v1" in world.effects.unloads)
    waiting = asyncio.create_task(world.ask())
    await settle()
    await world.unloaded("v1")
    assert not waiting.done()
    await world.loaded("v2")
    assert await waiting == "v2"
    assert await switching is SwitchMode.DRAINED


@pytest.mark.parametrize(
    "world", [lambda: World(max_models=1), lambda: World(together=False)], ids=["slots", "tensors"]
)
async def test_other_reasons_to_drain_first(world: type[World]) -> None:
    at = world()
    await at.start()
    switching = at.use(2)
    await at.unloaded("v1")
    await at.loaded("v2")
    assert await switching is SwitchMode.DRAINED


async def test_requests_go_back_when_the_new_version_fails_after_the_old_one_has_left() -> None:
    world = World(budget_mb=150.0)
    await world.start()
    switching = world.use(2)
    await until(lambda: "v1" in world.effects.unloads)
    waiting = asyncio.create_task(world.ask())
    await settle()
    await world.unloaded("v1")
    await world.fails_to_load("v2")
    with pytest.raises(LoadFailed):
        await switching
    await world.loaded("v1")
    assert await waiting == "v1"


async def test_other_idle_models_make_room_for_both() -> None:
    world = World()
    await world.start()
    other = servable("b")
    using = asyncio.create_task(_use(world.scheduler, other))
    await until(lambda: len(world.effects.loads) == 1)
    await world.loaded("v1")
    await using
    switching = world.use(2)
    await world.unloaded("v1")  # b's: the model itself is protected
    await world.loaded("v2")
    await world.unloaded("v1")
    assert await switching is SwitchMode.LIVE


async def _use(scheduler: Scheduler, target: Servable) -> None:
    async with scheduler.lease(target, deadline=soon()):
        pass


async def test_a_commit_that_fails_leaves_the_old_version_and_unloads_the_new_one() -> None:
    world = World()
    await world.start()
    world.commit_error = ServiceUnavailable("the database is locked")
    switching = world.use(2)
    await world.loaded("v2")
    with pytest.raises(ServiceUnavailable):
        await switching
    await world.unloaded("v2")
    assert await world.ask() == "v1"


async def test_a_new_version_that_comes_too_late_is_unloaded_again() -> None:
    world = World()
    await world.start()
    with pytest.raises(LoadTimeout):
        await world.use(2, seconds=0.01)
    await world.loaded("v2")
    await world.unloaded("v2")
    assert await world.ask() == "v1"
    assert world.in_memory() == ["v1"]


async def test_a_caller_that_goes_away_while_the_old_version_leaves_changes_nothing() -> None:
    world = World()
    await world.start()
    switching = world.use(2)
    await world.loaded("v2")
    switching.cancel()
    await asyncio.gather(switching, return_exceptions=True)
    assert await world.ask() == "v2"
    back = world.use(1)
    await world.unloaded("v1")
    await world.loaded("v1")
    await world.unloaded("v2")
    assert await back is SwitchMode.LIVE


async def test_a_version_that_can_never_fit_is_refused_and_nothing_leaves() -> None:
    world = World(budget_mb=150.0)
    await world.start()
    with pytest.raises(InsufficientMemory):
        await world.scheduler.switch(
            lambda: servable("a", version=1),
            servable("a", 151.0, version=2),
            deadline=soon(),
            commit=lambda: None,
        )
    assert await world.ask() == "v1"


async def test_nothing_is_loaded_for_a_model_that_is_not_in_memory() -> None:
    world = World()
    assert await world.use(2) is SwitchMode.UNLOADED
    assert world.current == 2
    assert world.effects.started == []


async def test_two_switches_take_turns() -> None:
    world = World()
    await world.start()
    forth, back = world.use(2), world.use(1)
    await world.loaded("v2")
    assert world.effects.started == ["load v1", "load v2", "unload v1"]
    await world.unloaded("v1")
    await world.loaded("v1")
    await world.unloaded("v2")
    assert await forth is await back is SwitchMode.LIVE
    assert world.current == 1


async def test_a_third_version_waits_for_the_end_of_the_switch() -> None:
    world = World(budget_mb=400.0)
    await world.start()
    switching = world.use(2)
    await settle()
    third = asyncio.create_task(world.ask(version=3))
    await world.loaded("v2")
    await world.unloaded("v1")
    await switching
    await world.unloaded("v2")
    await world.loaded("v3")
    assert await third == "v3"


async def test_a_model_that_waits_for_room_does_not_keep_the_switch_from_its_turn() -> None:
    world = World(budget_mb=150.0)
    await world.start()
    hold = asyncio.Event()
    running = asyncio.create_task(world.ask(hold))
    await settle()
    other = asyncio.create_task(_use(world.scheduler, servable("b", version=7)))
    await settle()  # it came first, and there is no room for it
    switching = world.use(2)
    await settle()
    hold.set()
    await running
    await world.unloaded("v1")
    await world.loaded("v2")
    assert await switching is SwitchMode.DRAINED
    await world.unloaded("v2")
    await world.loaded("v7")
    await other


async def test_a_lost_server_does_not_end_the_switch() -> None:
    world = World()
    await world.start()
    switching = world.use(2)
    await until(lambda: "v2" in world.effects.loads)
    world.scheduler.server_lost()
    waiting = asyncio.create_task(world.ask())
    await settle()
    world.effects.loads.clear()
    world.scheduler.server_restored()
    await world.loaded("v2")
    assert await switching is SwitchMode.LIVE
    assert await waiting == "v2"
    shown = world.scheduler.view("org/a")
    assert shown is not None
    assert shown.state is ModelState.LOADED
    assert shown.version == "v2"
