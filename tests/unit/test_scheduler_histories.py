"""Random histories of the scheduler: whatever happens in whatever order, its promises hold.

Requests come, give up, end; loads succeed, fail, hang; models die, are kept, released, switched,
unloaded, used behind our back; the server is lost and comes back; time passes (on a clock of its
own). Promises: the budget is never exceeded, no model with a lease is unloaded, no busy or kept one
is evicted, one load at a time per model, two versions of it in memory only during a switch, no
lease is lost, everybody is answered by their deadline, who waits waits for something that will
happen, no request that names no version fails for a version that is not the current one, and when
everything that can end has ended, nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane import events
from controlplane.errors import LoadFailed, LoadTimeout, ModelMoraError, ServiceUnavailable
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.policy import ModelPolicy
from controlplane.lifecycle.replay import replay
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.state import ModelState
from controlplane.lifecycle.transitions import DRAIN_TIMEOUT
from controlplane.registry.model import Servable, TaskType
from tests.virtual_time import VirtualTimeLoop, end_tasks

if TYPE_CHECKING:
    from controlplane.lifecycle.resident import Resident

BUDGET = 100.0
SLOTS = 4
NEEDS = [20.0, 30.0, 30.0, 45.0, 60.0, 100.0]
VERSIONS = (1, 2, 3)
UNFIT = 3  # a version whose tensors differ from the others'
EVICTIONS = {"lru_eviction", "yielded", "idle_ttl"}
LOAD_TIMEOUT = 30.0


def model(number: int, version: int = 1, *, floating: bool = False) -> Servable:
    return Servable(
        model_id=f"org/m{number}",
        version=f"v{version}",
        version_id=f"{number}-{version}",
        task_type=TaskType.TXT2EMBED,
        triton_name=f"org--m{number}",
        triton_version=version,
        need_mb=NEEDS[number],
        floating=floating,
    )


def label(servable: Servable) -> str:
    return f"{servable.model_id}@{servable.triton_version}"


def need(name: str) -> float:
    return NEEDS[int(name[len("org/m")])]


@dataclass(eq=False)
class Client:
    """One request: waits for its lease, holds it until told."""

    target: Servable
    deadline: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    leased: Servable | None = None
    error: ModelMoraError | None = None
    task: asyncio.Task[None] | None = None

    @property
    def holding(self) -> bool:
        return self.leased is not None

    async def run(self, scheduler: Scheduler, priority: int) -> None:
        try:
            lease = scheduler.lease(self.target, deadline=self.deadline, priority=priority)
            async with lease as self.leased:
                await self.done.wait()
        except ModelMoraError as error:
            self.error = error
        finally:
            self.leased = None


@dataclass
class OpenEffects:
    """Effects that stay open until the history ends them; keeps its own book of the memory.

    What it sees broken it notes in `violations`: an exception would end in the scheduler.
    """

    clients: list[Client]
    loading: dict[str, asyncio.Future[Loaded]] = field(default_factory=dict)
    unloading: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    in_memory: dict[str, float] = field(default_factory=dict)
    leaving_since: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    async def load(self, target: Servable, timeout: float) -> Loaded:
        name = label(target)
        if name in self.loading or name in self.in_memory:
            self.violations.append(f"{name} is loaded twice")
        future = self.loading[name] = asyncio.get_running_loop().create_future()
        self.in_memory[name] = target.need_mb
        loaded = None
        try:
            await asyncio.wait({future}, timeout=timeout)
            if not future.done():
                raise LoadTimeout(target.model_id, timeout)
            loaded = future.result()
            return loaded
        finally:
            self.loading.pop(name, None)
            if loaded is None:
                self.in_memory.pop(name, None)
            else:
                self.in_memory[name] = loaded.memory_mb or target.need_mb

    async def unload(self, target: Servable, timeout: float) -> None:
        name = label(target)
        drained_for = asyncio.get_running_loop().time() - self.leaving_since[name]
        busy = any(client.leased and client.leased.key == target.key for client in self.clients)
        if busy and drained_for < DRAIN_TIMEOUT - 0.1:
            self.violations.append(f"{name} is busy and is unloaded")
        future = self.unloading[name] = asyncio.get_running_loop().create_future()
        try:
            await future
            self.in_memory.pop(name, None)
        finally:
            self.unloading.pop(name, None)

    def lose(self) -> None:
        """The server died: its memory is back at once."""
        self.in_memory.clear()

    def fit_together(self, one: Servable, other: Servable) -> bool:
        return UNFIT not in (one.triton_version, other.triton_version)

    def kill_server(self) -> bool:
        return False


class Histories(RuleBasedStateMachine):
    """Everything that can happen.

    Attributes:
        disturbed: also what is no request: deaths, switches, marks, the end of the server.
    """

    disturbed = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.clients: list[Client] = []
        self.effects = OpenEffects(self.clients)
        self.told: list[tuple[str, dict[str, object]]] = []
        bus = events.EventBus()
        bus.subscribe(events.DomainEvent, lambda e: self.told.append((e.event_type, e.payload())))
        self.scheduler = Scheduler(
            self.effects,
            bus,
            budget_mb=BUDGET,
            max_models=SLOTS,
            load_timeout=LOAD_TIMEOUT,
        )
        self._watch_evictions()
        self.server_up = True
        self.current = dict.fromkeys(range(len(NEEDS)), 1)
        self.switches: list[asyncio.Task[object]] = []

    def _watch_evictions(self) -> None:
        transitions = self.scheduler._transitions
        begin = transitions.begin_unload

        def watched(resident: Resident, reason: str) -> None:
            stays = resident.keep_loaded or resident.switching
            if reason in EVICTIONS and (resident.leases or stays):
                self.effects.violations.append(f"{label(resident.servable)}: {reason}")
            self.effects.leaving_since[label(resident.servable)] = self.loop.time()
            begin(resident, reason)

        transitions.begin_unload = watched  # type: ignore[method-assign]

    def settle(self) -> None:
        self.loop.turns(12)
        for client in self.clients:
            if client.error is not None and client.target.floating:
                self._check_failure(client.target, client.error)
        self.clients[:] = [c for c in self.clients if c.task is not None and not c.task.done()]

    def _check_failure(self, target: Servable, error: ModelMoraError) -> None:
        """A switch that does not succeed is nothing that clients may notice."""
        if isinstance(error, LoadFailed):
            number = int(target.model_id[len("org/m") :])
            failed = int(error.details["model_id"].rpartition("@")[2])
            if failed != self.current[number]:
                self.effects.violations.append(f"{label(target)} failed for version {failed}")

    def call(self, function: object, *args: object) -> None:
        async def inside() -> None:
            function(*args)  # type: ignore[operator]

        self.loop.run_until_complete(inside())
        self.settle()

    @rule(
        number=st.integers(0, len(NEEDS) - 1),
        priority=st.integers(1, 4),
        version=st.sampled_from([None, None, None, *VERSIONS]),
        patience=st.sampled_from([3600.0, 60.0, 5.0, 0.5]),
        swift=st.booleans(),
    )
    def request(
        self, number: int, priority: int, version: int | None, patience: float, swift: bool
    ) -> None:
        floating = version is None
        target = model(number, version or self.current[number], floating=floating)

        async def begin() -> None:
            client = Client(target, self.loop.time() + patience)
            client.task = asyncio.ensure_future(client.run(self.scheduler, priority))
            self.clients.append(client)

        self.loop.run_until_complete(begin())
        self.settle()

        if swift:
            self.let_effects_end()

    @precondition(lambda self: self.effects.loading or self.effects.unloading)
    @rule()
    def let_effects_end(self) -> None:
        for _ in range(4):  # one makes room for the next
            for name, future in list(self.effects.loading.items()):
                self.call(future.set_result, Loaded(need(name), None, 0.1, 1.0))
            for unloading in list(self.effects.unloading.values()):
                self.call(unloading.set_result, None)

    @precondition(lambda self: self.disturbed)
    @rule(number=st.integers(0, len(NEEDS) - 1), version=st.sampled_from(VERSIONS))
    def use(self, number: int, version: int) -> None:
        async def switch() -> None:
            with contextlib.suppress(ModelMoraError):
                await self.scheduler.switch(
                    lambda: model(number, self.current[number]),
                    model(number, version),
                    deadline=asyncio.get_running_loop().time() + 3600,
                    commit=lambda: self.current.update({number: version}),
                )

        async def begin() -> None:
            self.switches.append(asyncio.ensure_future(switch()))

        self.loop.run_until_complete(begin())
        self.settle()

    @precondition(lambda self: any(not task.done() for task in self.switches))
    @rule()
    def give_up_a_switch(self) -> None:
        self.call(next(task for task in self.switches if not task.done()).cancel)

    @precondition(lambda self: self.effects.loading)
    @rule(data=st.data(), how=st.sampled_from(["well", "well", "refused", "unreachable"]))
    def end_a_load(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.effects.loading)))
        future = self.effects.loading[name]
        if how == "refused":
            self.call(future.set_exception, LoadFailed(name, "so it is"))
        elif how == "unreachable":
            self.call(future.set_exception, ServiceUnavailable("no answer"))
        else:
            size = need(name) * data.draw(st.sampled_from([0.5, 1.0]))
            self.call(future.set_result, Loaded(size, None, 0.1, 1.0))

    @precondition(lambda self: self.effects.loading)
    @rule(data=st.data(), turns=st.integers(0, 6))
    def give_up_in_the_moment_of_the_grant(self, data: st.DataObject, turns: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.effects.loading)))
        self.effects.loading[name].set_result(Loaded(need(name), None, 0.1, 1.0))
        self.loop.turns(turns)
        for client in self.clients:
            if label(client.target) == name and client.task is not None:
                client.task.cancel()
        self.settle()

    @precondition(lambda self: self.effects.unloading)
    @rule(data=st.data())
    def end_an_unload(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.effects.unloading)))
        self.call(self.effects.unloading[name].set_result, None)

    @precondition(lambda self: any(c.holding for c in self.clients))
    @rule()
    def let_requests_end(self) -> None:
        for client in [c for c in self.clients if c.holding]:
            self.call(client.done.set)

    @precondition(lambda self: any(c.holding for c in self.clients))
    @rule(data=st.data())
    def end_a_request(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len([c for c in self.clients if c.holding]) - 1))
        self.call([c for c in self.clients if c.holding][index].done.set)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.clients) - 1))
        task = self.clients[index].task
        assert task is not None
        self.call(task.cancel)

    @precondition(lambda self: self.disturbed)
    @rule(number=st.integers(0, len(NEEDS) - 1))
    def unload(self, number: int) -> None:
        async def ask() -> None:
            task = asyncio.ensure_future(self.scheduler.unload(f"org/m{number}"))
            task.add_done_callback(lambda t: t.cancelled() or t.exception())

        self.loop.run_until_complete(ask())
        self.settle()

    @precondition(lambda self: self.disturbed)
    @rule()
    def lose_or_restore_the_server(self) -> None:
        self.server_up = not self.server_up
        if not self.server_up:
            self.effects.lose()
        self.call(self.scheduler.server_restored if self.server_up else self.scheduler.server_lost)

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0, 3.0, 10.0, 31.0, 65.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.advance(seconds)
        self.settle()

    def _loaded(self) -> dict[str, Resident]:
        found = self.scheduler.residents()
        return {label(r.servable): r for r in found if r.state is ModelState.LOADED}

    @precondition(lambda self: self.disturbed and self._loaded())
    @rule(data=st.data())
    def a_model_dies(self, data: st.DataObject) -> None:
        resident = self._loaded()[data.draw(st.sampled_from(sorted(self._loaded())))]
        self.call(self.scheduler.declare_unhealthy, resident, "its process has died")

    @precondition(lambda self: self._loaded())
    @rule(data=st.data(), ago=st.sampled_from([0.0, 1.0, 100.0]))
    def use_behind_our_back(self, data: st.DataObject, ago: float) -> None:
        resident = self._loaded()[data.draw(st.sampled_from(sorted(self._loaded())))]
        now = events.utc_now()  # stands still: what the history is must not depend on our speed
        with mock.patch.object(events, "utc_now", return_value=now):
            self.call(self.scheduler.used_elsewhere, resident, now.timestamp() - ago)

    @precondition(lambda self: self.disturbed)
    @rule(
        number=st.integers(0, len(NEEDS) - 2),
        keep=st.booleans(),
        idle_ttl=st.sampled_from([None, 0.0]),
    )
    def keep_or_release(self, number: int, keep: bool, idle_ttl: float | None) -> None:
        policy = ModelPolicy(keep_loaded=keep, idle_ttl=idle_ttl)
        self.call(self.scheduler.set_policy, f"org/m{number}", policy)
        if keep:
            self.call(self.scheduler.want, model(number, self.current[number]))

    @invariant()
    def budget_holds(self) -> None:
        assert sum(self.effects.in_memory.values()) <= self.scheduler.used_mb <= BUDGET
        assert len(self.effects.in_memory) <= SLOTS

    @invariant()
    def everybody_is_answered_by_their_deadline(self) -> None:
        now = self.loop.time()
        late = [c.target.model_id for c in self.clients if not c.holding and c.deadline < now]
        assert late == []

    @invariant()
    def who_waits_waits_for_something_that_will_happen(self) -> None:
        waiting = [r for r in self.scheduler.residents() if r.waiters]
        comes = (
            self.effects.loading
            or self.effects.unloading
            or any(client.holding for client in self.clients)
            or self.scheduler._decisions._timer is not None
            or not self.server_up
        )
        assert comes or not waiting

    @invariant()
    def nobody_waits_for_a_model_that_serves(self) -> None:
        for resident in self._loaded().values():
            assert resident.yielding or not resident.waiters

    @invariant()
    def events_tell_every_move(self) -> None:
        states = replay(self.told)
        for resident in self.scheduler.residents():
            key = (resident.model_id, resident.servable.version)
            assert states.get(key, ModelState.UNLOADED) is resident.state, key

    @invariant()
    def nothing_was_violated(self) -> None:
        assert self.effects.violations == []

    @invariant()
    def leases_are_those_of_the_clients(self) -> None:
        for resident in self.scheduler.residents():
            key = resident.servable.key
            held = [c for c in self.clients if c.leased is not None and c.leased.key == key]
            assert resident.leases == len(held)

    @invariant()
    def two_versions_are_in_memory_only_during_a_switch(self) -> None:
        staying = Counter(
            resident.servable.triton_name
            for resident in self.scheduler.residents()
            if resident.state in {ModelState.LOADING, ModelState.LOADED}
        )
        for name, count in staying.items():
            assert count <= (2 if name in self.scheduler._ledger.switches else 1), name

    def teardown(self) -> None:
        try:
            self._let_everything_end()
        finally:
            end_tasks(self.loop)
            self.loop.close()

    def _let_everything_end(self) -> None:
        if not self.server_up:
            self.lose_or_restore_the_server()
        for _ in range(200):
            self.loop.advance(5.0)
            self.settle()
            for name in list(self.effects.loading):
                self.call(
                    self.effects.loading[name].set_result,
                    Loaded(need(name), None, 0.1, 1.0),
                )
            for name in list(self.effects.unloading):
                self.call(self.effects.unloading[name].set_result, None)
            for client in list(self.clients):
                if client.holding:
                    self.call(client.done.set)
            self.settle()
            switching = self.scheduler._ledger.switches or not all(t.done() for t in self.switches)
            if not self.clients and not switching:
                break
        waiting = [client.target.model_id for client in self.clients]
        assert waiting == [], "somebody was forgotten"
        assert all(task.done() for task in self.switches), "a switch was forgotten"
        assert self.scheduler._ledger.switches == {}
        assert self.effects.violations == []
        assert not any(r.leases or r.waiters for r in self.scheduler.residents())


class CrowdedHistories(Histories):
    """Requests only, so that more of them meet: turns, yielding, the line."""

    disturbed = False


_SETTINGS = settings(
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # explaining takes minutes
)
# Always the same ones; `--hypothesis-profile=search` tries others.
EXAMPLES = 1000
# Other tests count the scheduler's lines; counting them takes longer than the histories do.
TestHistories = pytest.mark.no_cover(Histories.TestCase)
TestHistories.settings = settings(_SETTINGS, max_examples=EXAMPLES)
TestCrowdedHistories = pytest.mark.no_cover(CrowdedHistories.TestCase)
TestCrowdedHistories.settings = settings(_SETTINGS, max_examples=EXAMPLES)
