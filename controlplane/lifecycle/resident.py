"""A model that is in memory, on its way there, or asked for: the scheduler's bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from controlplane.lifecycle.admission import Gate
from controlplane.lifecycle.history import ModelHistory
from controlplane.lifecycle.policy import Candidate
from controlplane.lifecycle.state import HOLDING_MEMORY, ModelState, move

if TYPE_CHECKING:
    import asyncio

    from controlplane.errors import ModelMoraError
    from controlplane.lifecycle.health import HealthStatus
    from controlplane.registry.model import Servable


def earlier_source(need_source: str) -> str:
    """Where the figure of a model that is not in memory comes from, beside `measured` now."""
    return "last_measured" if need_source == "measured" else need_source


@dataclass(eq=False)
class Waiter:
    """Somebody who waits for a load; `takes_lease` is False for an explicit load.

    `resident` changes when a switch gives a `floating` waiter to another version; `since` is on
    the event loop's clock.
    """

    resident: Resident
    future: asyncio.Future[None]
    priority: int
    sequence: int
    takes_lease: bool
    floating: bool = False
    since: float = 0.0

    @property
    def granted(self) -> bool:
        """True when the load succeeded, also if the waiter has not woken yet."""
        future = self.future
        return future.done() and not future.cancelled() and future.exception() is None


@dataclass(eq=False)
class Resident:
    """Mutable state of one model version. Only the scheduler changes it.

    Attributes:
        ledger_mb: what counts against the budget: the reservation, then the measurement.
        gpu_mb: on all GPUs, as measured; None where none can be asked.
        last_used: the event loop's clock, seconds.
        epoch: grows when the server is lost, so that effects of before are known as stale.
        drained: set while an unload waits for the last lease to end.
        gone: done when an unload has ended.
        switching: part of a switch of versions, and therefore not evicted.
        keep_loaded, idle_ttl: as `policy.ModelPolicy`.
        turn_began, yielding_since: see `policy.Residency`; None when it does not yield.
        desired: to be in memory although nobody waits for it: it was when the server was lost, it
            is being healed, or it is kept.
        relapses: how often in a row it was loaded and became unhealthy soon after.
        node: which Triton holds it; there is one today.
        request_count: leases given since it was loaded; `earlier_requests`: before that.
        late_grants: leases that were given to those who had waited.
        misses: requests that did not find it loaded.
        coalesced: those of them that joined others who waited already.
    """

    servable: Servable
    state: ModelState = ModelState.UNLOADED
    ledger_mb: float = 0.0
    peak_mb: float = 0.0
    gpu_mb: float | None = None
    measured: bool = False
    leases: int = 0
    waiters: list[Waiter] = field(default_factory=list)
    last_used: float = 0.0
    loaded_at: datetime | None = None
    loaded_clock: float = 0.0
    load_seconds: float | None = None
    request_count: int = 0
    process_id: int | None = None
    health: HealthStatus | None = None
    attempts: int = 0
    retry_at: float = 0.0
    error: ModelMoraError | None = None
    epoch: int = 0
    effect: asyncio.Task[None] | None = None
    drained: asyncio.Future[None] | None = None
    gone: asyncio.Future[None] | None = None
    unload_reason: str = "manual"
    keep_loaded: bool = False
    idle_ttl: float | None = None
    switching: bool = False
    turn_began: float = 0.0
    yielding_since: float | None = None
    desired: bool = False
    relapses: int = 0
    node: str = "local"
    earlier_requests: int = 0
    late_grants: int = 0
    misses: int = 0
    coalesced: int = 0
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        self.gate = Gate(self.servable.model_id)

    @property
    def model_id(self) -> str:
        return self.servable.model_id

    @property
    def need_mb(self) -> float:
        """What a load reserves, in MB."""
        return max(self.servable.need_mb, self.peak_mb)

    @property
    def memory_source(self) -> str:
        """Where the figure of its memory comes from: measured now, when it was last loaded,
        declared at its registration, or estimated from its files."""
        if self.measured:
            return "measured"
        if self.peak_mb > self.servable.need_mb:
            return "last_measured"
        return earlier_source(self.servable.need_source)

    @property
    def holds_memory(self) -> bool:
        return self.state in HOLDING_MEMORY

    @property
    def idle(self) -> bool:
        return self.leases == 0 and not self.waiters

    @property
    def hits(self) -> int:
        """Requests that found it loaded; not counted one by one, which would cost each of them."""
        return self.earlier_requests + self.request_count - self.late_grants

    @property
    def yielding(self) -> bool:
        """True while it takes no new requests, because others have waited for room too long."""
        return self.yielding_since is not None

    @property
    def stays(self) -> bool:
        """True when it must not be evicted, busy or not."""
        return self.keep_loaded or self.switching

    @property
    def may_leave(self) -> bool:
        """True when nobody uses it; who waits for one that yields waits for its return."""
        unused = self.leases == 0 if self.yielding else self.idle
        return self.state is ModelState.LOADED and unused

    def move_to(self, target: ModelState) -> None:
        """Change the state along a legal edge.

        Raises:
            InvalidStateTransition: when there is no such edge.
        """
        self.state = move(self.model_id, self.state, target)

    def enlist(self, waiter: Waiter) -> None:
        """Have somebody wait for the load."""
        joins = bool(self.waiters) or self.state is ModelState.LOADING
        self.misses += waiter.takes_lease
        self.coalesced += joins
        self.waiters.append(waiter)

    def begin_to_serve(self) -> None:
        """Count requests anew: it has just been loaded."""
        self.earlier_requests += self.request_count
        self.request_count = 0

    def grant(self, now: float) -> None:
        """Give one lease; `now` is the event loop's clock."""
        self.leases += 1
        self.request_count += 1
        self.last_used = now

    def serve_waiters(self, now: float) -> None:
        """Wake those who wait for the load that has succeeded."""
        for waiter in self.waiters:
            if waiter.takes_lease:  # rule 1: before they wake, or the model could be evicted
                self.grant(now)
                self.late_grants += 1
            waiter.future.set_result(None)
        self.waiters.clear()

    def fail_waiters(self, error: ModelMoraError) -> None:
        """Wake those who wait, with `error`."""
        for waiter in self.waiters:
            waiter.future.set_exception(error)
        self.waiters.clear()

    def candidate(self, evictable: bool | None = None) -> Candidate:
        """How the eviction policy sees it; `evictable` None asks only whether it is in use."""
        if evictable is None:
            evictable = self.may_leave and not self.stays
        return Candidate(self.servable.key, self.ledger_mb, self.last_used, evictable)

    def urgency(self) -> tuple[int, int]:
        """Order of loads: priority of the most urgent waiter, then who came first."""
        return min((waiter.priority, waiter.sequence) for waiter in self.waiters)

    def waiting_since(self) -> float:
        """When the longest waiting of those who wait came."""
        return min(waiter.since for waiter in self.waiters)


class ResidentView(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a resident for those who only look; memory in MB, times in seconds.

    Attributes:
        memory_mb: what counts against the budget now.
        estimated_mb: what a load reserves; `memory_source` says where that figure comes from, or
            that the present one is measured.
        waiting_requests: for a load, or for their turn beside others that run.
        hits, misses, coalesced: requests that found it loaded, that did not, and those of the
            latter that joined others who waited already.
        retry_at: when a failed model may be tried again.
    """

    model_id: str
    version: str
    triton_name: str
    triton_version: int
    state: ModelState
    memory_mb: float
    peak_mb: float
    measured: bool
    device: str
    request_count: int
    active_requests: int
    waiting_requests: int
    healthy: bool
    consecutive_failures: int
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    health_error: str | None = None
    last_check_at: datetime | None = None
    response_time_ms: float | None = None
    load_seconds: float | None = None
    process_id: int | None = None
    estimated_mb: float = 0.0
    memory_source: str = "estimated"
    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    attempts: int = 0
    retry_at: datetime | None = None
    history: ModelHistory = ModelHistory()
    gpu_mb: float | None = None
    keep_loaded: bool = False
    yielding: bool = False


def view(
    resident: Resident,
    history: ModelHistory,
    *,
    device: str,
    last_used_at: datetime | None,
    retry_at: datetime | None,
) -> ResidentView:
    """The snapshot of `resident`."""
    health = resident.health
    failed = (
        resident.error.message if resident.state is ModelState.FAILED and resident.error else None
    )
    return ResidentView(
        model_id=resident.model_id,
        version=resident.servable.version,
        triton_name=resident.servable.triton_name,
        triton_version=resident.servable.triton_version,
        state=resident.state,
        memory_mb=resident.ledger_mb,
        peak_mb=resident.peak_mb,
        measured=resident.measured,
        device=device,
        request_count=resident.request_count,
        active_requests=resident.leases - resident.gate.waiting,
        waiting_requests=len(resident.waiters) + resident.gate.waiting,
        healthy=resident.state is ModelState.LOADED and (health is None or health.healthy),
        consecutive_failures=health.consecutive_failures if health else 0,
        loaded_at=resident.loaded_at,
        last_used_at=last_used_at,
        health_error=failed or (health.error_message if health else None),
        last_check_at=health.last_check if health else None,
        response_time_ms=health.response_time_ms if health else None,
        load_seconds=resident.load_seconds,
        process_id=resident.process_id,
        estimated_mb=resident.need_mb,
        memory_source=resident.memory_source,
        hits=resident.hits,
        misses=resident.misses,
        coalesced=resident.coalesced,
        attempts=resident.attempts,
        retry_at=retry_at if resident.state is ModelState.FAILED else None,
        history=history,
        gpu_mb=resident.gpu_mb,
        keep_loaded=resident.keep_loaded,
        yielding=resident.yielding,
    )
