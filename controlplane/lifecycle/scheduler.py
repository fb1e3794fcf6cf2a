"""The sole owner of lifecycle state: who is in memory, who waits, who must leave.

Everything here runs on one event loop. Decisions (`_decide` and all it calls) are synchronous:
they read and change state without awaiting, then start effects as tasks; an effect that ends
comes back through one synchronous method. Rules (numbers as in docs/lifecycle.md):

1. Reserve before waiting: leases and ledger entries are taken before anybody awaits.
2. One load per model at a time; all who ask meanwhile wait for that one.
3. A model with a lease or a waiter is never evicted.
4. Memory being freed counts until its process has ended.
5. Waiting loads are served in order of priority, then of arrival; memory freed for the first of
   them is not taken by a later one.
6. A model that cannot fit into the whole budget is refused before anybody is evicted.
7. A failed load fails all its waiters with the cause; then requests are answered with that
   cause until the backoff has passed.
8. One version of a model is in memory at a time, two during a switch: the new one is loaded
   before the old one leaves; where both do not fit, requests wait instead.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from controlplane import events
from controlplane.errors import (
    InsufficientMemory,
    InvalidStateTransition,
    LoadFailed,
    LoadTimeout,
    ModelAlreadyLoaded,
    ModelMoraError,
    ModelNotLoaded,
    ServiceUnavailable,
)
from controlplane.lifecycle import health, memory
from controlplane.lifecycle.policy import Room, evictions_for
from controlplane.lifecycle.resident import Resident, ResidentView, Waiter, view
from controlplane.lifecycle.state import ModelState
from controlplane.lifecycle.switch import Switch, SwitchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from controlplane.lifecycle.effects import Loaded
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

Key = tuple[str, int]

DEFAULT_PRIORITY = 3
BACKOFF_BASE = 1.0
BACKOFF_ATTEMPTS = 3
# After the attempts of domain §3.7 a model is tried again at most this often, in seconds.
BACKOFF_CAP = 60.0
DRAIN_TIMEOUT = 60.0
UNLOAD_TIMEOUT = 60.0
UNLOAD_RETRY = 5.0


class Effects(Protocol):
    """What decisions do; `effects.TritonEffects` in production."""

    async def load(self, servable: Servable, timeout: float) -> Loaded: ...
    async def unload(self, servable: Servable, timeout: float) -> None: ...
    def fit_together(self, one: Servable, other: Servable) -> bool: ...
    def kill_server(self) -> bool: ...


class Lease:
    """The right to use a loaded model; the model stays in memory until it is released."""

    __slots__ = ("_deadline", "_priority", "_resident", "_scheduler", "_servable")

    def __init__(
        self, scheduler: Scheduler, servable: Servable, deadline: float, priority: int
    ) -> None:
        self._scheduler = scheduler
        self._servable = servable
        self._deadline = deadline
        self._priority = priority
        self._resident: Resident | None = None

    async def __aenter__(self) -> Servable:
        resident = self._scheduler.try_acquire(self._servable)
        if resident is None:
            resident = await self._scheduler.wait_until_loaded(
                self._servable, self._deadline, self._priority
            )
        if not resident.gate.try_enter():
            try:
                await resident.gate.enter(self._priority, self._deadline)
            except BaseException:
                self._scheduler.release(resident)
                raise
        self._resident = resident
        # Another than was asked for when a switch has given the request to the new version.
        return resident.servable

    async def __aexit__(self, *_: object) -> None:
        resident, self._resident = self._resident, None
        if resident is not None:
            resident.gate.leave()
            self._scheduler.release(resident)


class Scheduler:
    """Decides on loads and evictions within a budget of MB and a number of models."""

    def __init__(
        self,
        effects: Effects,
        bus: events.EventBus,
        *,
        budget_mb: float,
        max_models: int,
        load_timeout: float,
        record_memory: Callable[[Servable, float], None] = lambda *_: None,
        manager_id: str = "local",
    ) -> None:
        self._effects = effects
        self._bus = bus
        self.budget_mb = budget_mb
        self.max_models = max_models
        self._load_timeout = load_timeout
        self._record_memory = record_memory
        self._manager_id = manager_id
        self._residents: dict[Key, Resident] = {}
        self._switches: dict[str, Switch] = {}  # by Triton name
        self._sequence = itertools.count()
        self._server_up = True
        self._closing = False
        self._device = memory.device()
        self._background: set[asyncio.Task[None]] = set()

    # -- asking ----------------------------------------------------------------------------

    def lease(
        self, servable: Servable, *, deadline: float, priority: int = DEFAULT_PRIORITY
    ) -> Lease:
        """Use a model: `async with scheduler.lease(servable, deadline=loop.time() + 60):`.

        Loads it first where needed. A loaded model costs no await, no I/O. Entering gives the
        servable that is leased: during a switch, and when the request named no version, that may
        be the new version.

        Args:
            servable: the version to use.
            deadline: on the event loop's clock; waiting ends then.
            priority: 1 (critical) to 4 (low), decides who is loaded first, and who is served
                first when more than `admission.RUNNING` requests of a model are under way.

        Raises (on entering):
            InsufficientMemory: it can never fit, or no room came free in time.
            LoadFailed, LoadTimeout: its load failed or took too long.
            QueueFull, InferenceTimeout: too many requests of the model, or its turn came too late.
            ServiceUnavailable: Triton is down, or the service stops.
        """
        return Lease(self, servable, deadline, priority)

    def try_acquire(self, servable: Servable) -> Resident | None:
        """A lease at once when the model is loaded, else None."""
        resident = self._residents.get(self._heir(servable).key)
        if resident is None or resident.state is not ModelState.LOADED:
            return None
        self._grant(resident)
        return resident

    def release(self, resident: Resident) -> None:
        """End a lease."""
        resident.leases -= 1
        resident.last_used = self._now()
        if resident.leases == 0:
            if resident.drained is not None and not resident.drained.done():
                resident.drained.set_result(None)
            self._decide()

    async def wait_until_loaded(
        self, servable: Servable, deadline: float, priority: int, *, takes_lease: bool = True
    ) -> Resident:
        """Have the model loaded and wait for it; the lease is held when this returns."""
        resident = self._resident_for(self._heir(servable))
        waiter = Waiter(
            resident,
            asyncio.get_running_loop().create_future(),
            priority,
            next(self._sequence),
            takes_lease,
            servable.floating,
        )
        resident.waiters.append(waiter)
        self._decide()
        try:
            await asyncio.wait({waiter.future}, timeout=max(0.0, deadline - self._now()))
            if waiter.future.done():
                waiter.future.result()
                return waiter.resident
        except BaseException:
            self._abandon(waiter)
            raise
        error = self._too_late(waiter.resident)
        self._abandon(waiter)
        raise error

    async def load(self, servable: Servable, *, deadline: float) -> ResidentView:
        """Load a model because somebody says so; its backoff is forgotten.

        Raises:
            ModelAlreadyLoaded: it is loaded or being loaded.
            and what `lease` raises.
        """
        resident = self._residents.get(servable.key)
        if resident is not None:
            if resident.state in {ModelState.LOADED, ModelState.LOADING, ModelState.UNHEALTHY}:
                raise ModelAlreadyLoaded(servable.model_id, f"is already {resident.state}")
            resident.retry_at = 0.0
        resident = await self.wait_until_loaded(
            servable, deadline, DEFAULT_PRIORITY, takes_lease=False
        )
        return self._view(resident)

    async def switch(
        self,
        current: Callable[[], Servable],
        new: Servable,
        *,
        deadline: float,
        commit: Callable[[], object],
    ) -> SwitchMode:
        """Have requests that name no version served by `new` instead of `current`; lose none.

        Where the old version is in memory, `new` is loaded and healthy before it is drained and
        unloaded; both hold memory meanwhile. Where that is not possible, the old one is drained
        first and requests wait for `new`. Returns when the old one has left.

        Args:
            current: the version to switch from; asked when no other switch of the model runs.
            commit: makes the switch known to the registry; called in the very moment from which
                requests go to `new`.

        Raises:
            what `lease` raises for `new`, and what `commit` raises: all is served as before.
        """
        name = new.triton_name
        while (running := self._switches.get(name)) is not None:
            await asyncio.wait({running.done})
        old = current()
        leaving, coming = self._bookkeeping(old), self._bookkeeping(new)
        if leaving is coming or not leaving.holds_memory:
            commit()
            self._hand_over(leaving, coming)
            return SwitchMode.UNLOADED
        coming.retry_at = 0.0  # somebody says so: as with an explicit load
        done = asyncio.get_running_loop().create_future()
        switch = Switch(leaving, coming, done, self._effects.fit_together(old, new))
        self._switches[name] = switch
        leaving.switching = coming.switching = True
        try:
            await self._carry_out(switch, new, deadline, commit)
        except BaseException:
            self._call_off(switch)
            raise
        self._spawn(self._finish(switch))  # also when nobody waits for it any more
        await asyncio.shield(done)
        return SwitchMode.DRAINED if switch.drained else SwitchMode.LIVE

    async def unload(
        self, model_id: str, *, triton_version: int | None = None, reason: str = "manual"
    ) -> float:
        """Drain and unload every loaded version of a model, or one; returns the freed MB.

        Raises:
            ModelNotLoaded: nothing of it is in memory.
            InvalidStateTransition: it is being loaded; that must end first (domain §3.5).
            ServiceUnavailable: Triton did not unload it.
        """
        mine = [
            resident
            for resident in self._residents.values()
            if resident.model_id == model_id
            and triton_version in (None, resident.servable.triton_version)
            and resident.holds_memory
        ]
        if not mine:
            raise ModelNotLoaded(model_id)
        for resident in mine:
            if resident.state is ModelState.LOADING:
                raise InvalidStateTransition(model_id, "loading", "unloaded")
        freed = sum(resident.ledger_mb for resident in mine)
        for resident in mine:
            if resident.state in {ModelState.LOADED, ModelState.UNHEALTHY}:
                self._begin_unload(resident, reason)
        for resident in mine:
            if resident.gone is not None:
                await asyncio.shield(resident.gone)
        return freed

    # -- looking ---------------------------------------------------------------------------

    def loaded(self) -> tuple[ResidentView, ...]:
        """All models in memory, on their way in or out, or failed at their last load."""
        shown = (r for r in self._residents.values() if r.state is not ModelState.UNLOADED)
        return tuple(self._view(r) for r in sorted(shown, key=lambda r: r.servable.key))

    def view(self, model_id: str) -> ResidentView | None:
        """The model's loaded resident, else one that holds memory, else its failed one, or None."""
        mine = [r for r in self._residents.values() if r.model_id == model_id]
        shown = [r for r in mine if r.state is not ModelState.UNLOADED]
        loaded = ModelState.LOADED
        best = max(shown, key=lambda r: (r.state is loaded, r.holds_memory), default=None)
        return self._view(best) if best else None

    @property
    def used_mb(self) -> float:
        """Memory that counts against the budget."""
        return sum(r.ledger_mb for r in self._residents.values() if r.holds_memory)

    def residents(self) -> tuple[Resident, ...]:
        """The bookkeeping itself, for the monitor beside us; nobody else may hold it."""
        return tuple(self._residents.values())

    # -- what the monitor saw --------------------------------------------------------------

    def measured(self, resident: Resident, memory_mb: float) -> None:
        """Take a new measurement of a loaded model into the ledger."""
        if resident.state is not ModelState.LOADED:
            return
        resident.ledger_mb, resident.measured = memory_mb, True
        if memory_mb > resident.peak_mb * 1.05:
            self._record_memory(resident.servable, memory_mb)
        resident.peak_mb = max(resident.peak_mb, memory_mb)
        self._decide()

    def process_replaced(self, resident: Resident, process_id: int) -> None:
        """Triton restarted the model by itself, as it does when its configuration changes."""
        resident.process_id = process_id

    def checked(self, resident: Resident, status: health.HealthStatus) -> None:
        """Take the outcome of a test inference; an unhealthy model leaves and comes back."""
        resident.health = status
        if status.must_leave:
            self.declare_unhealthy(resident, status.error_message or "it fails its checks")

    def declare_unhealthy(self, resident: Resident, reason: str) -> None:
        """Take a model that does not answer out of service; whoever asks next loads it afresh."""
        if resident.state is not ModelState.LOADED:
            return
        resident.move_to(ModelState.UNHEALTHY)
        resident.health = health.after_failure(resident.health, events.utc_now(), reason)
        log.warning("model is unhealthy", model_id=resident.model_id, reason=reason)
        self._publish(
            events.ModelHealthChanged(
                model_id=resident.model_id,
                version=resident.servable.version,
                previous_state=ModelState.LOADED.value,
                new_state=ModelState.UNHEALTHY.value,
                error_message=reason,
            )
        )
        self._begin_unload(resident, "unhealthy_restart")

    def unload_idle(self, resident: Resident) -> None:
        """Unload a model whose idle time has run out; no-op when it is in use after all."""
        if resident.candidate().evictable:
            self._begin_unload(resident, "idle_ttl")

    def server_lost(self) -> None:
        """Triton died: nothing is in memory any more; waiters stay and are served afterwards."""
        self._server_up = False
        for resident in self._residents.values():
            if resident.holds_memory:
                self._forget_loaded(resident)

    def server_restored(self) -> None:
        """Triton is back, empty."""
        self._server_up = True
        self._decide()

    async def close(self) -> None:
        """Refuse new requests, let running ones end, unload everything."""
        self._closing = True
        for resident in self._residents.values():
            self._fail_waiters(resident, ServiceUnavailable("The service is stopping."))
        for resident in list(self._residents.values()):
            if resident.effect is not None and resident.state is ModelState.LOADING:
                await asyncio.wait({resident.effect})
            if self._server_up and resident.state is ModelState.LOADED:
                self._begin_unload(resident, "shutdown")
        effects = [r.effect for r in self._residents.values() if r.effect is not None]
        if effects:
            await asyncio.wait(effects)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # -- deciding (synchronous) ------------------------------------------------------------

    def _heir(self, servable: Servable) -> Servable:
        switch = self._switches.get(servable.triton_name)
        return servable if switch is None else switch.heir(servable)

    def _bookkeeping(self, servable: Servable) -> Resident:
        resident = self._residents.setdefault(servable.key, Resident(servable))
        if resident.state is ModelState.UNLOADED:
            resident.servable = servable
        return resident

    def _resident_for(self, servable: Servable) -> Resident:
        if self._closing:
            raise ServiceUnavailable("The service is stopping.")
        resident = self._bookkeeping(servable)
        if resident.state is ModelState.UNLOADED and resident.need_mb > self.budget_mb:
            raise InsufficientMemory(servable.model_id, resident.need_mb, self.budget_mb, ever=True)
        if resident.state is ModelState.FAILED:
            self._try_failed_again(resident)
        return resident

    def _try_failed_again(self, resident: Resident) -> None:
        wait = resident.retry_at - self._now()
        if wait > 0 and resident.error is not None:
            resident.error.retry_after = wait
            # One object answers many callers: without this its traceback would grow with each.
            raise resident.error.with_traceback(None)
        resident.move_to(ModelState.UNLOADED)

    def _decide(self) -> None:
        if not self._server_up or self._closing:
            return
        wanted = [
            r for r in self._residents.values() if r.waiters and r.state is ModelState.UNLOADED
        ]
        # A switch first: who waits for the room of its old version waits for the switch as well.
        for resident in sorted(wanted, key=lambda r: (not r.switching, r.urgency())):
            switch = self._switches.get(resident.servable.triton_name)
            if switch is not None and switch.holds_back(resident):
                continue
            if not self._start_or_make_room(resident):
                return  # rule 5
        self._trim()

    def _start_or_make_room(self, resident: Resident) -> bool:
        switch = self._switches.get(resident.servable.triton_name)
        beside = switch is not None and switch.lets_in(resident)
        if not beside and self._rival_in_memory(resident):
            return False
        need, free = Room(resident.need_mb, 1), self._free()
        if beside and switch is not None and not switch.together:
            self._drain_first(switch, "their tensors differ")
            return False
        if need.memory_mb <= free.memory_mb and need.slots <= free.slots:
            self._begin_load(resident)
            return True
        victims = self._victims(need, free)
        if victims is None and beside and switch is not None:
            self._drain_first(switch, "the budget has no room for both")
        for victim in victims or ():
            self._begin_unload(victim, "lru_eviction")
        return False

    def _rival_in_memory(self, resident: Resident) -> bool:
        """One version of a model is in memory at a time (domain C-43): the other leaves first.

        During a switch neither side of it is evictable.
        """
        for other in self._residents.values():
            same = other.servable.triton_name == resident.servable.triton_name
            if same and other is not resident and other.holds_memory:
                if other.candidate().evictable:
                    self._begin_unload(other, "version_switch")
                return True
        return False

    def _trim(self) -> None:
        """Models grow after they were measured: back into the budget by evicting idle ones."""
        free = self._free()
        if free.memory_mb < 0:
            for victim in self._victims(Room(0.0, 0), free) or ():
                self._begin_unload(victim, "lru_eviction")

    def _free(self) -> Room:
        holding = sum(1 for r in self._residents.values() if r.holds_memory)
        return Room(self.budget_mb - self.used_mb, self.max_models - holding)

    def _victims(self, need: Room, free: Room) -> list[Resident] | None:
        leaving = [r for r in self._residents.values() if r.state is ModelState.UNLOADING]
        coming = Room(free.memory_mb + sum(r.ledger_mb for r in leaving), free.slots + len(leaving))
        holding = (r.candidate() for r in self._residents.values() if r.holds_memory)
        chosen = evictions_for(need, coming, holding)
        return None if chosen is None else [self._residents[c.key] for c in chosen]

    def _begin_load(self, resident: Resident) -> None:
        resident.move_to(ModelState.LOADING)
        resident.ledger_mb, resident.measured = resident.need_mb, False
        resident.effect = self._spawn(self._load(resident, resident.epoch))

    def _begin_unload(self, resident: Resident, reason: str) -> None:
        resident.move_to(ModelState.UNLOADING)
        resident.unload_reason = reason
        resident.gone = asyncio.get_running_loop().create_future()
        # Its outcome may interest nobody (evictions); an unread exception must not be a warning.
        resident.gone.add_done_callback(lambda f: f.cancelled() or f.exception())
        resident.effect = self._spawn(self._unload(resident, resident.epoch))

    # -- switching versions ----------------------------------------------------------------

    async def _carry_out(
        self, switch: Switch, new: Servable, deadline: float, commit: Callable[[], object]
    ) -> None:
        # A lease: nothing may take the new version out of memory before it is the current one.
        explicit = msgspec.structs.replace(new, floating=False)
        await self.wait_until_loaded(explicit, deadline, DEFAULT_PRIORITY)
        try:
            commit()
            switch.redirects = True
            self._hand_over(switch.old, switch.new)
            if switch.old.state is ModelState.LOADED:
                self._begin_unload(switch.old, "version_switch")
        finally:
            self.release(switch.new)

    def _drain_first(self, switch: Switch, why: str) -> None:
        log.warning(
            "two versions cannot be in memory together: requests wait during the switch",
            model_id=switch.new.model_id,
            old_version=switch.old.servable.version,
            new_version=switch.new.servable.version,
            reason=why,
        )
        switch.drained = switch.redirects = True
        self._begin_unload(switch.old, "version_switch")

    def _hand_over(self, source: Resident, target: Resident) -> None:
        """Give those who wait for one version, and named none, to another."""
        moved = [waiter for waiter in source.waiters if waiter.floating]
        if not moved or target is source or target.need_mb > self.budget_mb:
            return
        source.waiters[:] = [waiter for waiter in source.waiters if not waiter.floating]
        for waiter in moved:
            waiter.resident = target
        target.waiters += moved
        if target.state is ModelState.FAILED and target.error is not None:
            self._fail_waiters(target, target.error)
        elif target.state is ModelState.LOADED:
            self._serve_waiters(target)
        self._decide()

    async def _finish(self, switch: Switch) -> None:
        if switch.old.holds_memory and switch.old.gone is not None:
            await asyncio.wait({switch.old.gone})
        self._end(switch)

    def _call_off(self, switch: Switch) -> None:
        """The new version does not serve: requests go to the old one as before."""
        switch.redirects = False
        self._hand_over(switch.new, switch.old)
        self._spawn(self._clear_away(switch))

    async def _clear_away(self, switch: Switch) -> None:
        """Out of memory with a new version that came too late, or could not be made current."""
        if switch.new.state is ModelState.LOADING and switch.new.effect is not None:
            await asyncio.wait({switch.new.effect})
        wanted = switch.old.holds_memory or switch.old.waiters
        if switch.new.state is ModelState.LOADED and wanted:
            self._begin_unload(switch.new, "version_switch")
        self._end(switch)

    def _end(self, switch: Switch) -> None:
        del self._switches[switch.new.servable.triton_name]
        switch.old.switching = switch.new.switching = False
        switch.done.set_result(None)
        self._decide()

    def _serve_waiters(self, resident: Resident) -> None:
        for waiter in resident.waiters:
            if waiter.takes_lease:  # rule 1: before they wake, or the model could be evicted
                self._grant(resident)
            waiter.future.set_result(None)
        resident.waiters.clear()

    def _grant(self, resident: Resident) -> None:
        resident.leases += 1
        resident.request_count += 1
        resident.last_used = self._now()

    def _abandon(self, waiter: Waiter) -> None:
        resident = waiter.resident
        if waiter in resident.waiters:
            resident.waiters.remove(waiter)
            self._decide()
        elif waiter.takes_lease and _succeeded(waiter.future):
            self.release(resident)  # granted in the very moment its owner gave up

    def _too_late(self, resident: Resident) -> ModelMoraError:
        if not self._server_up:
            return ServiceUnavailable("Triton is down and is being restarted.")
        if resident.state is ModelState.LOADING:
            began = self._now() - (resident.loaded_clock or self._now())
            return LoadTimeout(resident.model_id, max(round(began, 1), 0.1))
        return InsufficientMemory(resident.model_id, resident.need_mb, self.budget_mb)

    # -- effects and their ends ------------------------------------------------------------

    async def _load(self, resident: Resident, epoch: int) -> None:
        servable = resident.servable
        resident.loaded_clock = self._now()
        self._publish(
            events.ModelLoadRequested(model_id=servable.model_id, version=servable.version)
        )
        try:
            loaded = await self._effects.load(servable, self._load_timeout)
        except ModelMoraError as error:
            if epoch == resident.epoch:
                self._load_failed(resident, error)
        except Exception as error:  # a bug of ours must not leave waiters without an answer
            log.exception("load broke", model_id=servable.model_id)
            if epoch == resident.epoch:
                self._load_failed(resident, LoadFailed(servable.model_id, repr(error)))
        else:
            if epoch == resident.epoch:
                self._load_succeeded(resident, loaded)

    def _load_succeeded(self, resident: Resident, loaded: Loaded) -> None:
        resident.move_to(ModelState.LOADED)
        now = events.utc_now()
        resident.loaded_at, resident.loaded_clock = now, self._now()
        resident.last_used = self._now()
        resident.load_seconds, resident.process_id = loaded.seconds, loaded.process_id
        resident.attempts, resident.error = 0, None
        resident.request_count = 0
        resident.health = health.after_success(now, loaded.response_time_ms)
        self._serve_waiters(resident)
        self._publish(
            events.ModelLoaded(
                model_id=resident.model_id,
                version=resident.servable.version,
                memory_mb=round(loaded.memory_mb or resident.ledger_mb, 1),
                load_seconds=round(loaded.seconds, 3),
                process_id=loaded.process_id,
            )
        )
        if loaded.memory_mb is not None:
            self.measured(resident, loaded.memory_mb)
        self._decide()

    def _load_failed(self, resident: Resident, error: ModelMoraError) -> None:
        resident.move_to(ModelState.FAILED)
        resident.ledger_mb = 0.0
        resident.attempts += 1
        resident.error = error
        resident.retry_at = self._now() + _backoff(resident.attempts)
        log.error(
            "load failed",
            model_id=resident.model_id,
            attempt=resident.attempts,
            error_code=error.code,
            reason=error.message,
        )
        self._publish(
            events.ModelLoadFailed(
                model_id=resident.model_id,
                version=resident.servable.version,
                error_message=error.message,
                attempt=resident.attempts,
            )
        )
        switch = self._switches.get(resident.servable.triton_name)
        if switch is not None and switch.new is resident:
            switch.redirects = False  # now, not when the switch notices: nobody may fail meanwhile
            self._hand_over(resident, switch.old)
        self._fail_waiters(resident, error)
        self._decide()

    async def _unload(self, resident: Resident, epoch: int) -> None:
        if resident.leases:
            resident.drained = asyncio.get_running_loop().create_future()
            await asyncio.wait({resident.drained}, timeout=DRAIN_TIMEOUT)
            resident.drained = None
        while epoch == resident.epoch:
            try:
                await self._effects.unload(resident.servable, UNLOAD_TIMEOUT)
            except ModelMoraError as error:
                log.warning("unload failed", model_id=resident.model_id, reason=error.message)
                # Its memory is in an unknown state; only a fresh server is certain.
                self._effects.kill_server()
                await asyncio.sleep(UNLOAD_RETRY)
            else:
                if epoch == resident.epoch:
                    self._unloaded(resident)
                return

    def _unloaded(self, resident: Resident) -> None:
        freed = resident.ledger_mb
        resident.move_to(ModelState.UNLOADED)
        self._publish_unloaded(resident, resident.unload_reason)
        if resident.unload_reason == "lru_eviction":
            self._publish(
                events.ModelEvicted(
                    model_id=resident.model_id,
                    version=resident.servable.version,
                    freed_mb=round(freed, 1),
                )
            )
        self._clear(resident)
        self._decide()

    def _forget_loaded(self, resident: Resident) -> None:
        """The server's death took the model with it."""
        resident.epoch += 1
        if resident.effect is not None:
            resident.effect.cancel()
        if resident.state is ModelState.LOADING:
            resident.move_to(ModelState.FAILED)
        elif resident.state is ModelState.UNHEALTHY:
            resident.move_to(ModelState.UNLOADING)
        was_loaded = resident.state is not ModelState.FAILED
        resident.move_to(ModelState.UNLOADED)
        if was_loaded:
            self._publish_unloaded(resident, "server_lost")
        self._clear(resident)

    def _clear(self, resident: Resident) -> None:
        resident.ledger_mb, resident.measured = 0.0, False
        resident.process_id = None
        resident.health = None
        if resident.gone is not None and not resident.gone.done():
            resident.gone.set_result(None)

    def _fail_waiters(self, resident: Resident, error: ModelMoraError) -> None:
        for waiter in resident.waiters:
            waiter.future.set_exception(error)
        resident.waiters.clear()

    # -- small helpers ---------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _publish_unloaded(self, resident: Resident, reason: str) -> None:
        self._publish(
            events.ModelUnloaded(
                model_id=resident.model_id,
                version=resident.servable.version,
                reason=reason,
                uptime_seconds=round(self._now() - resident.loaded_clock, 3),
            )
        )

    def _publish(self, event: events.DomainEvent) -> None:
        self._bus.publish(_with_aggregate(event, self._manager_id))

    def _view(self, resident: Resident) -> ResidentView:
        age = timedelta(seconds=self._now() - resident.last_used)
        used_at = events.utc_now() - age if resident.last_used else None
        return view(resident, device=self._device, last_used_at=used_at)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _with_aggregate(event: events.DomainEvent, manager_id: str) -> events.DomainEvent:
    return msgspec.structs.replace(event, aggregate_id=manager_id)


def _succeeded(future: asyncio.Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _backoff(attempts: int) -> float:
    """Seconds until the next attempt: 1, 2, 4, then the cap, each with up to 20 % jitter."""
    base = BACKOFF_BASE * 2 ** (attempts - 1) if attempts <= BACKOFF_ATTEMPTS else BACKOFF_CAP
    return base * (1 + 0.2 * random.random())
