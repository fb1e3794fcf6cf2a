"""Rule 9: models take turns with memory. Simulated on a clock of its own: loads take their time."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import events
from controlplane.errors import InsufficientMemory
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.policy import Residency, idle_limit
from controlplane.lifecycle.scheduler import Scheduler
from tests.unit.test_scheduler import servable, soon
from tests.virtual_time import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.registry.model import Servable

PATIENCE, DRAIN = Residency().patience, Residency().drain


@dataclass
class TimedEffects:
    """Loads and unloads that take a while and always succeed."""

    load_seconds: float = 1.0
    unload_seconds: float = 0.5
    budget_mb: float = 100.0
    loads: Counter[str] = field(default_factory=Counter)
    in_memory: dict[str, float] = field(default_factory=dict)
    over_budget: bool = False

    async def load(self, target: Servable, timeout: float) -> Loaded:
        self.loads[target.model_id] += 1
        self.in_memory[target.model_id] = target.need_mb
        self.over_budget |= sum(self.in_memory.values()) > self.budget_mb
        await asyncio.sleep(self.load_seconds)
        return Loaded(target.need_mb, None, self.load_seconds, 1.0)

    async def unload(self, target: Servable, timeout: float) -> None:
        await asyncio.sleep(self.unload_seconds)
        del self.in_memory[target.model_id]

    def fit_together(self, one: Servable, other: Servable) -> bool:
        return True

    def kill_server(self) -> bool:
        return False


class World:
    """A scheduler over timed effects, and the clients' waits."""

    def __init__(self, budget_mb: float = 100.0, **effects: float) -> None:
        self.effects = TimedEffects(budget_mb=budget_mb, **effects)
        self.told: list[events.DomainEvent] = []
        bus = events.EventBus()
        bus.subscribe(events.DomainEvent, self.told.append)
        self.scheduler = Scheduler(
            self.effects, bus, budget_mb=budget_mb, max_models=100, load_timeout=300.0
        )
        self.waits: dict[str, list[float]] = {}

    async def use(self, target: Servable, seconds: float, patience: float = 600.0) -> None:
        began = asyncio.get_running_loop().time()
        async with self.scheduler.lease(target, deadline=soon(patience)):
            waited = asyncio.get_running_loop().time() - began
            self.waits.setdefault(target.model_id, []).append(waited)
            await asyncio.sleep(seconds)

    async def keep_using(self, target: Servable, seconds: float, *, until: float) -> None:
        """A client that sends its next request when it has the answer to the last."""
        while asyncio.get_running_loop().time() < until:
            await self.use(target, seconds)

    def reasons(self) -> list[str]:
        return [e.reason for e in self.told if isinstance(e, events.ModelUnloaded)]


A, B, C = servable("a"), servable("b"), servable("c")


def test_two_models_that_want_the_same_room_do_not_serve_one_request_per_load() -> None:
    async def history() -> World:
        world = World()
        await asyncio.gather(
            world.keep_using(A, 0.01, until=300), world.keep_using(B, 0.01, until=300)
        )
        return world

    world = in_virtual_time(history())
    for model in ("org/a", "org/b"):
        assert len(world.waits[model]) / world.effects.loads[model] > 50
        assert max(world.waits[model]) < PATIENCE + 2 * (1.0 + 0.5) + 2
    assert not world.effects.over_budget


def test_a_model_that_nobody_came_back_for_leaves_soon() -> None:
    async def history() -> World:
        world = World()
        await world.use(A, 0.01)
        await world.use(B, 0.01)
        return world

    assert in_virtual_time(history()).waits["org/b"] == [pytest.approx(0.1 + 0.5 + 1.0)]


def test_a_stream_of_requests_for_a_loaded_model_does_not_starve_another() -> None:
    async def history() -> World:
        world = World()
        stream = [asyncio.create_task(world.keep_using(A, 0.5, until=100)) for _ in range(4)]
        await asyncio.sleep(20)
        await world.use(B, 0.01)
        await asyncio.gather(*stream)
        return world

    world = in_virtual_time(history())
    # Its patience, the running requests, the unload, its own load.
    assert world.waits["org/b"][0] <= PATIENCE + 0.5 + 0.5 + 1.0 + 0.01
    assert max(world.waits["org/a"]) <= 0.5 + 2 * (0.5 + 1.0) + 0.2
    assert world.reasons()[0] == "yielded"


def test_a_model_that_yields_serves_on_when_nobody_waits_any_more() -> None:
    async def history() -> World:
        world = World()
        hold = asyncio.create_task(world.use(A, 20.0))
        await asyncio.sleep(2)
        impatient = asyncio.create_task(world.use(B, 0.01, patience=PATIENCE + 2))
        await asyncio.sleep(PATIENCE + 1)
        late = asyncio.create_task(world.use(A, 0.01))
        await asyncio.sleep(0.5)
        assert world.waits["org/a"] == [1.0], "it yields, and takes no new requests"
        with pytest.raises(InsufficientMemory):
            await impatient
        shown = world.scheduler.view("org/a")
        assert shown is not None
        assert not shown.yielding
        await asyncio.gather(hold, late)
        return world

    world = in_virtual_time(history())
    assert world.effects.loads == {"org/a": 1}
    assert max(world.waits["org/a"]) <= 1.0 + 1e-6


def test_a_request_without_end_does_not_keep_a_yielding_model_from_serving() -> None:
    async def history() -> World:
        world = World()
        endless = asyncio.create_task(world.use(A, 1000.0))
        await asyncio.sleep(2)
        waiting = asyncio.create_task(world.use(B, 0.01, patience=900.0))
        await asyncio.sleep(PATIENCE + 1)
        late = asyncio.create_task(world.use(A, 0.01))
        await late
        endless.cancel()
        await asyncio.gather(endless, return_exceptions=True)
        await waiting
        return world

    world = in_virtual_time(history())
    assert world.waits["org/a"][1] <= DRAIN
    assert "org/b" in world.waits


def test_the_model_that_was_loaded_first_yields_first() -> None:
    async def history() -> World:
        world = World(budget_mb=200.0)
        for number, model in enumerate((A, B)):
            world.stream = asyncio.create_task(world.keep_using(model, 0.3, until=60 - number))
            await asyncio.sleep(5)
        await world.use(C, 0.01)
        return world

    world = in_virtual_time(history())
    unloaded = [e.model_id for e in world.told if isinstance(e, events.ModelUnloaded)]
    assert unloaded[0] == "org/a"


def crowd(
    weights: Sequence[float],
    *,
    clients: int,
    room: int,
    load: float,
    serve: float,
    seed: int,
    seconds: float = 600,
) -> World:
    """Clients that ask for models at random, by these weights, for so long."""

    async def history() -> World:
        world = World(budget_mb=100.0 * room, load_seconds=load)
        chance = random.Random(seed)
        models = [servable(f"m{number}") for number in range(len(weights))]

        async def client() -> None:
            while asyncio.get_running_loop().time() < seconds:
                (model,) = chance.choices(models, weights)
                await world.use(model, chance.uniform(0.5, 1.5) * serve)

        await asyncio.gather(*(client() for _ in range(clients)))
        return world

    return in_virtual_time(history())


@pytest.mark.no_cover  # thousands of requests, whose lines the few above have counted
@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_thirty_models_in_room_for_five_are_all_served_in_time(skew: float) -> None:
    weights = [1 / (rank + 1) ** skew for rank in range(30)]
    world = crowd(weights, clients=32, room=5, load=1.7, serve=0.02, seed=1, seconds=200)
    waits = sorted(wait for model in world.waits.values() for wait in model)
    assert waits[-1] < 60.0, "the default deadline of a request"
    assert statistics.fmean(waits) < 20.0
    assert not world.effects.over_budget
    assert len(waits) / sum(world.effects.loads.values()) > (1.5 if skew == 0 else 3)


@pytest.mark.no_cover
@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=10),
    clients=st.integers(1, 12),
    room=st.integers(1, 3),
    load=st.floats(0.2, 10.0),
    serve=st.floats(0.01, 2.0),
    seed=st.integers(0, 100),
)
def test_nobody_waits_longer_than_all_the_others_turns(
    weights: list[float], clients: int, room: int, load: float, serve: float, seed: int
) -> None:
    world = crowd(weights, clients=clients, room=room, load=load, serve=serve, seed=seed)
    turn = Residency().turn(load)
    # In the worst case each of the others has a turn before: it is loaded, has its time, ends what
    # runs and leaves; and the first of them used up the patience.
    bound = PATIENCE + (len(weights) + 1) * (turn + 1.5 * serve + 0.5 + load)
    assert max(wait for waits in world.waits.values() for wait in waits) <= bound
    assert not world.effects.over_budget


times = st.floats(0.0, 1e6)


@given(began=times, idle=times, load=st.one_of(st.none(), times))
def test_a_model_may_leave_within_its_longest_turn_and_not_before_its_grace(
    began: float, idle: float, load: float | None
) -> None:
    rules = Residency()
    used = began + idle
    leave = rules.may_leave_at(began, used, load)
    assert leave <= rules.may_yield_at(began, load) <= began + rules.longest_turn
    assert leave >= min(began + rules.shortest_turn, used + rules.grace * rules.shortest_turn)


@pytest.mark.parametrize(
    ("own", "default", "limit"),
    [(None, None, None), (None, 5.0, 5.0), (0.0, 5.0, 0.0), (-1.0, 5.0, None), (7.0, None, 7.0)],
)
def test_a_models_own_idle_time_overrides_the_setting(
    own: float | None, default: float | None, limit: float | None
) -> None:
    assert idle_limit(own, default) == limit


def test_a_look_that_is_due_at_once_may_be_brought_forward_on_the_servers_event_loop() -> None:
    """uvloop's timers that are due when they are made do not tell for when they were."""

    async def main() -> list[float]:
        scheduler = Scheduler(
            TimedEffects(), events.EventBus(), budget_mb=100, max_models=5, load_timeout=10
        )
        decisions, loop, looked = scheduler._decisions, asyncio.get_running_loop(), []
        decisions.decide = lambda: looked.append(loop.time())  # type: ignore[method-assign]
        now = loop.time()
        for when in (now, now + 60, now - 1, now):
            decisions._look_again_by(when)
        await asyncio.sleep(0.01)
        await scheduler.close()
        return looked

    loop = uvloop.new_event_loop()
    try:
        assert len(loop.run_until_complete(main())) == 1
    finally:
        loop.close()
