"""The sole owner of lifecycle state: who is in memory, who waits, who must leave.

Everything here runs on one event loop. Decisions (`decisions.py`) are synchronous: they read and
change the books (`ledger.py`) without awaiting, then start effects as tasks; an effect that ends
comes back through one synchronous method (`transitions.py`). `switching.py` is rule 8. The
rules (numbers as in docs/lifecycle.md):

1. Reserve before waiting: leases and ledger entries are taken before anybody awaits.
2. One load per model at a time; all who ask meanwhile wait for that one.
3. A model with a lease or a waiter is never evicted.
4. Memory being freed counts until its process has ended.
5. Waiting loads are served in order of priority, then of arrival; room is made for all of
   them at a time, and what is freed for an earlier one is not taken by a later one.
6. A model that cannot fit into the whole budget is refused before anybody is evicted.
7. A failed load fails all its waiters with the cause; then requests are answered with that
   cause until the backoff has passed.
8. One version of a model is in memory at a time, two during a switch: the new one is loaded
   before the old one leaves; where both do not fit, requests wait instead.
9. Models take turns (`turns.py`): one that was just loaded stays for a while although others wait,
   and leaves after a while although it is busy. Nobody is starved, and no load serves in vain.
10. What was loaded when Triton died, what was unhealthy and what is kept comes back by itself,
    after all who wait.
"""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import TYPE_CHECKING

from controlplane import events
from controlplane.errors import (
    InvalidStateTransition,
    ModelAlreadyLoaded,
    ModelNotLoaded,
    ServiceUnavailable,
)
from controlplane.lifecycle import memory
from controlplane.lifecycle.decisions import Decisions
from controlplane.lifecycle.history import History
from controlplane.lifecycle.lease import Lease, PlacelessLease
from controlplane.lifecycle.ledger import DEFAULT_POLICY, Key, Ledger
from controlplane.lifecycle.plan import Held, Snapshot
from controlplane.lifecycle.policy import Residency
from controlplane.lifecycle.queue_view import WaitingView, waiting_views
from controlplane.lifecycle.resident import Resident, ResidentView, view
from controlplane.lifecycle.state import ModelState
from controlplane.lifecycle.switching import Switching
from controlplane.lifecycle.transitions import Effects, Transitions
from controlplane.lifecycle.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.lifecycle.health import HealthStatus
    from controlplane.lifecycle.policy import ModelPolicy
    from controlplane.lifecycle.switch import SwitchMode
    from controlplane.registry.model import Servable

__all__ = ["DEFAULT_PRIORITY", "Effects", "Key", "Lease", "Scheduler"]

DEFAULT_PRIORITY = 3
# Seconds that the stop waits for each load under way.
CLOSE_PATIENCE = 10.0


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
        residency: Residency | None = None,
    ) -> None:
        self._effects = effects
        self._ledger = Ledger(budget_mb, max_models)
        self.history = History(bus)
        self._transitions = Transitions(
            self._ledger,
            effects,
            bus,
            load_timeout=load_timeout,
            record_memory=record_memory,
            manager_id=manager_id,
        )
        self._switching = Switching(self._ledger, self._transitions, effects)
        self._decisions = Decisions(
            self._ledger, self._transitions, self._switching, residency or Residency()
        )
        self._decide = self._decisions.decide
        self._transitions.then_decide = self._decide
        self._transitions.on_load_failed = self._switching.load_failed
        self._waiting = Waiting(
            self._ledger, self._decide, self.release, self._transitions.clear_failure
        )
        self._device = memory.device()

    # -- asking ----------------------------------------------------------------------------

    def lease(
        self,
        servable: Servable,
        *,
        deadline: float,
        priority: int = DEFAULT_PRIORITY,
        place: bool = True,
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
            place: it counts as one of these; False for what must not wait for them.

        Raises (on entering):
            InsufficientMemory: it can never fit, or no room came free in time.
            LoadFailed, LoadTimeout: its load failed or took too long.
            QueueFull, InferenceTimeout: too many requests of the model, or its turn came too late.
            ServiceUnavailable: Triton is down, or the service stops.
        """
        kind = Lease if place else PlacelessLease
        return kind(self, servable, deadline, priority)

    def lease_at_once(self, servable: Servable) -> Lease | None:
        """A lease that has been entered, where the model is loaded and has a place for it."""
        lease = Lease(self, servable, math.inf, DEFAULT_PRIORITY)
        return None if lease.try_enter() is None else lease

    def try_acquire(self, servable: Servable) -> Resident | None:
        """A lease at once when the model is loaded, else None."""
        ledger = self._ledger
        if ledger.switches:
            servable = ledger.heir(servable)
        resident = ledger.residents.get((servable.triton_name, servable.triton_version))
        if (
            resident is None
            or resident.state is not ModelState.LOADED
            or resident.yielding_since is not None
        ):
            return None
        resident.grant(asyncio.get_running_loop().time())
        return resident

    def release(self, resident: Resident) -> None:
        """End a lease."""
        resident.leases -= 1
        resident.last_used = self._ledger.now()
        if resident.leases == 0:
            if resident.drained is not None and not resident.drained.done():
                resident.drained.set_result(None)
            if resident.idle_ttl == 0 and resident.candidate().evictable:
                self._transitions.begin_unload(resident, "idle_ttl")
            else:
                self._decisions.model_is_idle(resident)

    async def wait_until_loaded(
        self, servable: Servable, deadline: float, priority: int, *, takes_lease: bool = True
    ) -> Resident:
        """Have the model loaded and wait for it; the lease is held when this returns."""
        return await self._waiting.wait(servable, deadline, priority, takes_lease=takes_lease)

    async def load(self, servable: Servable, *, deadline: float) -> ResidentView:
        """Load a model because somebody says so; its backoff is forgotten.

        Raises:
            ModelAlreadyLoaded: it is loaded or being loaded.
            and what `lease` raises.
        """
        resident = self._ledger.residents.get(servable.key)
        if resident is not None:
            if resident.state in {ModelState.LOADED, ModelState.LOADING, ModelState.UNHEALTHY}:
                raise ModelAlreadyLoaded(servable.model_id, f"is already {resident.state}")
            resident.retry_at, resident.relapses = 0.0, 0
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
        return await self._switching.switch(
            current,
            new,
            lease_new=lambda s: self.wait_until_loaded(s, deadline, DEFAULT_PRIORITY),
            release=self.release,
            commit=commit,
        )

    async def unload(
        self, model_id: str, *, triton_version: int | None = None, reason: str = "manual"
    ) -> float:
        """Drain and unload every loaded version of a model, or one; returns the freed MB.

        Raises:
            ModelNotLoaded: nothing of it is in memory.
            InvalidStateTransition: it is being loaded; that must end first (domain §3.5).
            ServiceUnavailable: Triton did not unload it.
        """
        known = [
            resident
            for resident in self._ledger.residents.values()
            if resident.model_id == model_id
            and triton_version in (None, resident.servable.triton_version)
        ]
        for resident in known:
            resident.desired = False
        mine = [resident for resident in known if resident.holds_memory]
        if not mine:
            raise ModelNotLoaded(model_id)
        for resident in mine:
            if resident.state is ModelState.LOADING:
                raise InvalidStateTransition(model_id, "loading", "unloaded")
        freed = sum(resident.ledger_mb for resident in mine)
        for resident in mine:
            if resident.state in {ModelState.LOADED, ModelState.UNHEALTHY}:
                self._transitions.begin_unload(resident, reason)
        for resident in mine:
            if resident.gone is not None:
                await asyncio.shield(resident.gone)
        return freed

    # -- looking ---------------------------------------------------------------------------

    def loaded(self) -> tuple[ResidentView, ...]:
        """All models in memory, on their way in or out, or failed at their last load."""
        shown = (r for r in self._ledger.residents.values() if r.state is not ModelState.UNLOADED)
        return tuple(self._view(r) for r in sorted(shown, key=lambda r: r.servable.key))

    def view(self, model_id: str) -> ResidentView | None:
        """The model's loaded resident, else one that holds memory, else its failed one, or None."""
        mine = [r for r in self._ledger.residents.values() if r.model_id == model_id]
        shown = [r for r in mine if r.state is not ModelState.UNLOADED]
        loaded = ModelState.LOADED
        best = max(shown, key=lambda r: (r.state is loaded, r.holds_memory), default=None)
        return self._view(best) if best else None

    def view_of(self, triton_name: str, triton_version: int) -> ResidentView | None:
        """One version as it stands, in memory or not; None when nobody has asked for it yet."""
        resident = self._ledger.residents.get((triton_name, triton_version))
        return self._view(resident) if resident else None

    def every_view(self) -> tuple[ResidentView, ...]:
        """Also those that are not in memory, but were asked for since the service began."""
        return tuple(self._view(r) for r in self._ledger.residents.values())

    def waiting(self) -> tuple[WaitingView, ...]:
        """Requests that wait for a model to be loaded, in the order in which they are served."""
        ledger = self._ledger
        return waiting_views(ledger.residents.values(), ledger.now(), server_up=ledger.server_up)

    @property
    def server_up(self) -> bool:
        """False between the loss of Triton and its return."""
        return self._ledger.server_up

    @property
    def used_mb(self) -> float:
        """Memory that counts against the budget."""
        return self._ledger.used_mb

    @property
    def budget_mb(self) -> float:
        """What may count against it, in MB."""
        return self._ledger.budget_mb

    @property
    def max_models(self) -> int:
        """How many models may be in memory."""
        return self._ledger.max_models

    def residents(self) -> tuple[Resident, ...]:
        """The bookkeeping itself, for the monitor beside us; nobody else may hold it."""
        return tuple(self._ledger.residents.values())

    def need_mb(self, servable: Servable) -> tuple[float, bool]:
        """What a load of it reserves, and whether that was measured since we started."""
        resident = self._ledger.residents.get(servable.key)
        peak = 0.0 if resident is None else resident.peak_mb
        return max(servable.need_mb, peak), peak > servable.need_mb

    def snapshot(self) -> Snapshot:
        """Memory at this moment, for `plan.plan`."""
        now = self._ledger.now()
        return Snapshot(
            budget_mb=self.budget_mb,
            max_models=self.max_models,
            held=tuple(
                Held(
                    model_id=resident.model_id,
                    version=resident.servable.version,
                    key=resident.servable.key,
                    memory_mb=resident.ledger_mb,
                    state=resident.state,
                    idle_seconds=max(0.0, now - resident.last_used),
                    in_use=not resident.idle,
                    stays=resident.stays,
                )
                for resident in self._ledger.holding()
            ),
        )

    async def probe(self, servable: Servable) -> float:
        """One test inference on a leased model: its milliseconds; see `Effects.probe`."""
        return await self._effects.probe(servable)

    # -- what the monitor saw --------------------------------------------------------------

    def measured(self, resident: Resident, memory_mb: float) -> None:
        """Take a new measurement of a loaded model into the ledger."""
        self._transitions.measured(resident, memory_mb)

    def process_replaced(self, resident: Resident, process_id: int) -> None:
        """Triton restarted the model by itself, as it does when its configuration changes."""
        resident.process_id = process_id

    def checked(self, resident: Resident, status: HealthStatus) -> None:
        """Take the outcome of a test inference; an unhealthy model leaves and comes back."""
        resident.health = status
        if status.must_leave:
            self.declare_unhealthy(resident, status.error_message or "it fails its checks")

    def declare_unhealthy(self, resident: Resident, reason: str) -> None:
        """Take a model that does not answer out of service; whoever asks next loads it afresh."""
        self._transitions.declare_unhealthy(resident, reason)

    def unload_idle(self, resident: Resident, reason: str = "idle_ttl") -> None:
        """Unload a model whose idle time has run out; no-op when it is in use after all."""
        if resident.candidate().evictable:
            self._transitions.begin_unload(resident, reason)

    def vanished(self, resident: Resident) -> None:
        """Somebody else has unloaded a loaded model; its next request loads it again."""
        if resident.state is ModelState.LOADED:
            resident.desired = resident.keep_loaded
            self._transitions.forget_loaded(resident, "unloaded_elsewhere")
            self._decide()

    def used_elsewhere(self, resident: Resident, when: float) -> None:
        """Note a use that did not come through us: clients may talk to Triton directly.

        Args:
            when: seconds since 1970, as Triton's statistics (`last_inference`, there in ms).
        """
        ago = max(0.0, events.utc_now().timestamp() - when)
        resident.last_used = max(resident.last_used, self._ledger.now() - ago)

    def server_lost(self) -> None:
        """Triton died: nothing is in memory any more; waiters stay and are served afterwards."""
        self._ledger.server_up = False
        self._transitions.publish(events.TritonLost())
        for resident in self._ledger.holding():
            if resident.state is ModelState.LOADED or resident.keep_loaded:
                resident.desired = True
            self._transitions.forget_loaded(resident)

    def server_restored(self) -> None:
        """Triton is back, empty: who is waited for is loaded, then what was loaded before."""
        self._ledger.server_up = True
        self._transitions.publish(events.TritonRestored())
        for resident in self._ledger.active.values():
            if isinstance(resident.error, ServiceUnavailable):
                resident.retry_at = 0.0  # that was the old server
        self._decide()

    # -- what owners want ------------------------------------------------------------------

    def set_policy(self, model_id: str, policy: ModelPolicy) -> None:
        """Have a model follow this policy from now on; see `want` for bringing it in."""
        self._ledger.policies[model_id] = policy
        for resident in self._ledger.residents.values():
            if resident.model_id == model_id:
                self._ledger.apply_policy(resident)
        self._decide()

    def policy_of(self, model_id: str) -> ModelPolicy:
        """The policy that a model follows."""
        return self._ledger.policies.get(model_id, DEFAULT_POLICY)

    def want(self, servable: Servable) -> None:
        """Have a model loaded when there is room, though nobody waits for it.

        A kept model has idle ones evicted for it, any other takes only what is free.
        """
        resident = self._ledger.resident(servable)
        if resident.state in {ModelState.UNLOADED, ModelState.FAILED}:
            resident.desired = True
            self._decide()

    def forget(self, model_id: str, triton_version: int | None = None) -> None:
        """Close the books of a model (or of one version) that is no longer in the registry.

        Of one that is in memory, or waited for, they stay.
        """
        self._ledger.forget(model_id, triton_version)

    async def close(self) -> None:
        """Refuse new requests, let running ones end, unload everything."""
        self._ledger.closing = True
        self._decisions.close()
        for resident in self._ledger.residents.values():
            resident.fail_waiters(ServiceUnavailable("The service is stopping."))
        for resident in list(self._ledger.residents.values()):
            if resident.effect is not None and resident.state is ModelState.LOADING:
                # A load that hangs ends with Triton.
                await asyncio.wait({resident.effect}, timeout=CLOSE_PATIENCE)
            if self._ledger.server_up and resident.state is ModelState.LOADED:
                self._transitions.begin_unload(resident, "shutdown")
        leaving = [r for r in self._ledger.residents.values() if r.state is not ModelState.LOADING]
        if effects := [r.effect for r in leaving if r.effect is not None]:
            await asyncio.wait(effects)
        await self._transitions.end_tasks()

    # -- small helpers ---------------------------------------------------------------------

    def _view(self, resident: Resident) -> ResidentView:
        present, clock = events.utc_now(), self._ledger.now()
        used, retry = resident.last_used, resident.retry_at
        return view(
            resident,
            self.history.of(resident.model_id, resident.servable.version),
            device=self._device,
            last_used_at=present + timedelta(seconds=used - clock) if used else None,
            retry_at=present + timedelta(seconds=max(0.0, retry - clock)) if retry else None,
        )
