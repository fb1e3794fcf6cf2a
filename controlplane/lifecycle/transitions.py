"""How a model enters and leaves memory: effects are started here, and their ends come back here.

Starting and ending are synchronous; only `_load` and `_unload`, which run as tasks, wait. An end
changes the state first and then lets the scheduler decide anew.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from controlplane import events
from controlplane.errors import (
    LoadFailed,
    LoadInterrupted,
    ModelMoraError,
    ModelUnhealthy,
    ServiceUnavailable,
)
from controlplane.lifecycle import health
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from controlplane.lifecycle.effects import Loaded
    from controlplane.lifecycle.ledger import Ledger
    from controlplane.lifecycle.resident import Resident
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

BACKOFF_BASE = 1.0
BACKOFF_ATTEMPTS = 3
# After the attempts of domain §3.7 a model is tried again at most this often, in seconds.
BACKOFF_CAP = 60.0
DRAIN_TIMEOUT = 60.0
UNLOAD_TIMEOUT = 60.0
UNLOAD_RETRY = 5.0
# An unhealthy model is loaded again by itself: at once, then after 1, 2 and 4 s. One that has been
# well for this long, in seconds, begins anew.
HEALING_ATTEMPTS = 1 + BACKOFF_ATTEMPTS
WELL_AFTER = 60.0


class Effects(Protocol):
    """What decisions do; `effects.TritonEffects` in production."""

    async def load(self, servable: Servable, timeout: float) -> Loaded: ...
    async def unload(self, servable: Servable, timeout: float) -> None: ...
    def fit_together(self, one: Servable, other: Servable) -> bool: ...
    async def probe(self, servable: Servable) -> float: ...
    def kill_server(self) -> bool: ...


class Transitions:
    """Moves residents between their states, and tells the world.

    Attributes:
        then_decide: called after each change that may let somebody in.
        on_load_failed: called when a load has failed, before its waiters are told.
    """

    then_decide: Callable[[], None]
    on_load_failed: Callable[[Resident], None]

    def __init__(
        self,
        ledger: Ledger,
        effects: Effects,
        bus: events.EventBus,
        *,
        load_timeout: float,
        record_memory: Callable[[Servable, float], None],
        manager_id: str,
    ) -> None:
        self._ledger = ledger
        self._effects = effects
        self._bus = bus
        self._load_timeout = load_timeout
        self._record_memory = record_memory
        self._manager_id = manager_id
        self._background: set[asyncio.Task[None]] = set()

    # -- in --------------------------------------------------------------------------------

    def begin_load(self, resident: Resident) -> None:
        """Reserve the model's memory and start its load."""
        if resident.state is ModelState.FAILED:
            self.clear_failure(resident, "retry")
        resident.move_to(ModelState.LOADING)
        resident.ledger_mb, resident.measured = resident.need_mb, False
        resident.loaded_clock = self._ledger.now()
        resident.effect = self.spawn(self._load(resident, resident.epoch))
        self.publish(
            events.ModelLoadRequested(model_id=resident.model_id, version=resident.servable.version)
        )

    async def _load(self, resident: Resident, epoch: int) -> None:
        servable = resident.servable
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
        resident.loaded_at, resident.loaded_clock = now, self._ledger.now()
        resident.last_used = resident.turn_began = resident.loaded_clock
        resident.desired = False
        resident.load_seconds, resident.process_id = loaded.seconds, loaded.process_id
        resident.attempts, resident.error = 0, None
        resident.begin_to_serve()
        resident.health = health.after_success(now, loaded.response_time_ms)
        resident.serve_waiters(resident.loaded_clock)
        self.publish(
            events.ModelLoaded(
                model_id=resident.model_id,
                version=resident.servable.version,
                memory_mb=round(loaded.memory_mb or resident.ledger_mb, 1),
                load_seconds=round(loaded.seconds, 3),
                process_id=loaded.process_id,
            )
        )
        resident.gpu_mb = loaded.gpu_mb
        if loaded.memory_mb is not None:
            self.measured(resident, loaded.memory_mb)
        self.then_decide()

    def _load_failed(self, resident: Resident, error: ModelMoraError) -> None:
        resident.move_to(ModelState.FAILED)
        resident.ledger_mb = 0.0
        resident.attempts += 1
        resident.error = error
        resident.retry_at = self._ledger.now() + _backoff(resident.attempts)
        if resident.attempts > BACKOFF_ATTEMPTS and not resident.keep_loaded:
            resident.desired = False
        log.error(
            "load failed",
            model_id=resident.model_id,
            attempt=resident.attempts,
            error_code=error.code,
            reason=error.message,
        )
        self._publish_failed(resident, error.message)
        if isinstance(error, ServiceUnavailable) and resident.waiters:
            # Not the model's fault: they wait for the server, to their own deadlines.
            self.clear_failure(resident, "server_lost")
        elif _is_tried_again(resident, error):
            self.clear_failure(resident, "retry")
        else:
            self.on_load_failed(resident)
            resident.fail_waiters(error)
        self.then_decide()

    # -- while it is there -----------------------------------------------------------------

    def measured(self, resident: Resident, memory_mb: float) -> None:
        """Take a new measurement of a loaded model into the ledger."""
        if resident.state is not ModelState.LOADED:
            return
        resident.ledger_mb, resident.measured = memory_mb, True
        if memory_mb > resident.peak_mb * 1.05:
            self._record_memory(resident.servable, memory_mb)
        resident.peak_mb = max(resident.peak_mb, memory_mb)
        self.then_decide()

    def declare_unhealthy(self, resident: Resident, reason: str) -> None:
        """Take a model that does not answer out of service; no-op unless it is loaded."""
        if resident.state is not ModelState.LOADED:
            return
        resident.move_to(ModelState.UNHEALTHY)
        resident.health = health.after_failure(resident.health, events.utc_now(), reason)
        if self._ledger.now() - resident.loaded_clock >= WELL_AFTER:
            resident.relapses = 0
        resident.relapses += 1
        resident.desired = True
        resident.error = ModelUnhealthy(resident.model_id, reason)
        log.warning("model is unhealthy", model_id=resident.model_id, reason=reason)
        self._publish_health(resident, ModelState.LOADED, reason)
        self.begin_unload(resident, "unhealthy_restart")

    # -- out -------------------------------------------------------------------------------

    def begin_unload(self, resident: Resident, reason: str) -> None:
        """Let running requests end, then unload; the memory counts until it is back."""
        resident.move_to(ModelState.UNLOADING)
        resident.unload_reason = reason
        resident.yielding_since = None
        resident.gone = asyncio.get_running_loop().create_future()
        # Its outcome may interest nobody (evictions); an unread exception must not be a warning.
        resident.gone.add_done_callback(lambda f: f.cancelled() or f.exception())
        resident.effect = self.spawn(self._unload(resident, resident.epoch))
        self.publish(
            events.ModelUnloadRequested(
                model_id=resident.model_id, version=resident.servable.version, reason=reason
            )
        )

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
        if resident.unload_reason in {"lru_eviction", "yielded"}:
            self.publish(
                events.ModelEvicted(
                    model_id=resident.model_id,
                    version=resident.servable.version,
                    freed_mb=round(freed, 1),
                )
            )
        _clear(resident)
        if resident.unload_reason == "unhealthy_restart":
            self._heal(resident)
        self.then_decide()

    def _heal(self, resident: Resident) -> None:
        """Have an unhealthy model, now out of memory, loaded again; or give it up."""
        if resident.relapses <= HEALING_ATTEMPTS:
            wait = _backoff(resident.relapses - 1) if resident.relapses > 1 else 0.0
            resident.retry_at = self._ledger.now() + wait
            return
        error = resident.error or ModelUnhealthy(resident.model_id, "it fails its checks")
        resident.move_to(ModelState.FAILED)
        resident.retry_at = self._ledger.now() + _backoff(BACKOFF_ATTEMPTS + 1)
        resident.desired = resident.keep_loaded
        log.error(
            "given up on an unhealthy model", model_id=resident.model_id, reason=error.message
        )
        self._publish_health(resident, ModelState.UNLOADED, error.message)
        self.on_load_failed(resident)
        resident.fail_waiters(error)

    def forget_loaded(self, resident: Resident, reason: str = "server_lost") -> None:
        """The model is gone without our doing: with the server, or unloaded by somebody else."""
        resident.epoch += 1
        if resident.effect is not None:
            resident.effect.cancel()
        if resident.state is ModelState.LOADING:
            resident.move_to(ModelState.FAILED)
            self._publish_failed(resident, f"it was taken away during its load: {reason}")
            self.clear_failure(resident, reason)
        else:
            if resident.state is ModelState.UNHEALTHY:
                resident.move_to(ModelState.UNLOADING)
            resident.move_to(ModelState.UNLOADED)
            self._publish_unloaded(resident, reason)
        _clear(resident)

    def clear_failure(self, resident: Resident, reason: str) -> None:
        """Let a model whose load failed be loaded again."""
        resident.move_to(ModelState.UNLOADED)
        self.publish(
            events.ModelFailureCleared(
                model_id=resident.model_id, version=resident.servable.version, reason=reason
            )
        )

    # -- tasks and events ------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background until it ends or the scheduler is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def end_tasks(self) -> None:
        """Cancel what is still running in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def publish(self, event: events.DomainEvent) -> None:
        """Tell an event in the name of this scheduler."""
        self._bus.publish(msgspec.structs.replace(event, aggregate_id=self._manager_id))

    def _publish_health(self, resident: Resident, previous: ModelState, why: str) -> None:
        self.publish(
            events.ModelHealthChanged(
                model_id=resident.model_id,
                version=resident.servable.version,
                previous_state=previous.value,
                new_state=resident.state.value,
                error_message=why,
            )
        )

    def _publish_failed(self, resident: Resident, why: str) -> None:
        self.publish(
            events.ModelLoadFailed(
                model_id=resident.model_id,
                version=resident.servable.version,
                error_message=why,
                attempt=resident.attempts,
            )
        )

    def _publish_unloaded(self, resident: Resident, reason: str) -> None:
        self.publish(
            events.ModelUnloaded(
                model_id=resident.model_id,
                version=resident.servable.version,
                reason=reason,
                uptime_seconds=round(self._ledger.now() - resident.loaded_clock, 3),
            )
        )


def _clear(resident: Resident) -> None:
    resident.ledger_mb, resident.measured = 0.0, False
    resident.process_id = None
    resident.health = None
    resident.yielding_since = None
    if resident.gone is not None and not resident.gone.done():
        resident.gone.set_result(None)


def _is_tried_again(resident: Resident, error: ModelMoraError) -> bool:
    """True when the waiters of a failed load stay in line for another attempt."""
    interrupted = isinstance(error, LoadInterrupted) and not resident.switching
    return interrupted and bool(resident.waiters) and resident.attempts <= BACKOFF_ATTEMPTS


def _backoff(attempts: int) -> float:
    """Seconds until the next attempt: 1, 2, 4, then the cap, each with up to 20 % jitter."""
    base = BACKOFF_BASE * 2 ** (attempts - 1) if attempts <= BACKOFF_ATTEMPTS else BACKOFF_CAP
    return base * (1 + 0.2 * random.random())
