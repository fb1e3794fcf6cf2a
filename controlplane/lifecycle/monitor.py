"""Watches what is in memory: dead and hanging processes, idle models, test inferences, growth.

Decides nothing about who is in memory: it tells the scheduler what it saw. The one thing it does
itself is to kill the process of a model that hangs, without which no unload would end.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from controlplane import events
from controlplane.errors import ModelMoraError
from controlplane.lifecycle import health
from controlplane.lifecycle.deaths import ProcessWatch
from controlplane.lifecycle.effects import NoAnswer
from controlplane.lifecycle.policy import idle_limit
from controlplane.lifecycle.state import ModelState
from controlplane.triton.failures import StubUnhealthy, TritonError

if TYPE_CHECKING:
    from controlplane.lifecycle.effects import TritonEffects
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.sampler import Sampler
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

# A dead stub keeps reporting ready (triton-facts). The kernel tells of its death; where it cannot,
# the process is looked for this often.
TICK = 1.0
MEASURE_EVERY = 10.0
# As the scheduler calls the unload of a model that fails its checks.
UNHEALTHY = "unhealthy_restart"


class Monitor:
    """A background task beside the scheduler; reports to it what it sees."""

    def __init__(
        self,
        scheduler: Scheduler,
        effects: TritonEffects,
        *,
        idle_ttl: float | None,
        sampler: Sampler | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._effects = effects
        self._idle_ttl = idle_ttl
        self._sampler = sampler
        self._task: asyncio.Task[None] | None = None
        self._next_measure = 0.0
        self._suspects: set[tuple[str, int]] = set()
        self._wake = asyncio.Event()
        self._deaths = ProcessWatch(lambda _: self._wake.set())
        self._checks: dict[Resident, asyncio.Task[None]] = {}
        self._busy_since: dict[Resident, float] = {}

    def suspect(self, servable: Servable) -> None:
        """Look at a model soon: an inference on it failed in a way that its health may explain."""
        self._suspects.add(servable.key)
        self._wake.set()

    def start(self) -> None:
        """Begin watching."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """End watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for check in self._checks.values():
            check.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)
        self._deaths.close()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK)
            self._wake.clear()
            try:
                await self.tick()
            except Exception:  # watching must go on, whatever a single look ran into
                log.exception("monitor failed")

    async def tick(self) -> None:
        """One look at every model in memory; test inferences go on beside it."""
        now = asyncio.get_running_loop().time()
        residents = self._scheduler.residents()
        for resident in residents:
            if resident.state is ModelState.LOADED:
                self._look_at(resident, now)
            elif self._lingers(resident):
                self._start_check(resident)
        # Only now: who was found dead above has left the list.
        loaded = [r for r in residents if r.state is ModelState.LOADED]
        self._deaths.keep({r.process_id for r in loaded if r.process_id is not None})
        if self._sampler is not None:
            self._sampler.relieve()
            if now >= self._next_measure:
                self._next_measure = now + MEASURE_EVERY
                await self._sampler.measure()

    def _look_at(self, resident: Resident, now: float) -> None:
        if self._effects.process_lost(resident.process_id):
            successor = self._effects.process_of(resident.servable)
            if successor is None:
                self._scheduler.declare_unhealthy(resident, "its process has died")
                return
            self._scheduler.process_replaced(resident, successor)
        limit = idle_limit(resident.idle_ttl, self._idle_ttl)
        if limit is not None and now - resident.last_used > limit:
            self._scheduler.unload_idle(resident)
            return
        if self._check_is_due(resident, now):
            self._start_check(resident)

    def _check_is_due(self, resident: Resident, now: float) -> bool:
        """Traffic proves health: idle models and those that failed last time are probed."""
        if resident.servable.key in self._suspects:
            self._suspects.discard(resident.servable.key)
            return True
        if resident.health is not None and not resident.health.healthy:
            return True
        checked = resident.health.last_check if resident.health else None
        since_check = (events.utc_now() - checked).total_seconds() if checked else 1e9
        return min(since_check, now - resident.last_used) >= health.CHECK_INTERVAL

    @staticmethod
    def _lingers(resident: Resident) -> bool:
        """An unhealthy model whose running requests are still waited for."""
        return resident.drained is not None and resident.unload_reason == UNHEALTHY

    # -- test inferences -------------------------------------------------------------------

    def _start_check(self, resident: Resident) -> None:
        """In a task of its own: one that hangs must not keep the others from being looked at."""
        if resident not in self._checks:
            task = asyncio.get_running_loop().create_task(self._check(resident))
            self._checks[resident] = task
            task.add_done_callback(lambda _: self._checks.pop(resident, None))

    async def _check(self, resident: Resident) -> None:
        computing = self._effects.is_computing(resident.servable)
        epoch = (resident.epoch, resident.loaded_clock)
        hangs = dead = False
        try:
            response_time_ms = await self._effects.probe(resident.servable)
        except (TritonError, ModelMoraError) as error:
            if isinstance(error, NoAnswer) and computing() and self._may_be_busy(resident):
                status = health.after_busy(resident.health, events.utc_now())
            else:
                status = health.after_failure(resident.health, events.utc_now(), str(error))
                hangs = isinstance(error, NoAnswer | StubUnhealthy)
                process = self._effects.process_of(resident.servable)
                dead = isinstance(error, StubUnhealthy) and process is None
        else:
            self._busy_since.pop(resident, None)
            status = health.after_success(events.utc_now(), response_time_ms)
        if epoch == (resident.epoch, resident.loaded_clock):  # else it left while we asked
            if dead:  # Triton says so, and nothing is to be seen of it: no need to ask thrice
                self._scheduler.declare_unhealthy(resident, status.error_message or "it is dead")
            self._judge(resident, status, hangs=hangs)

    def _may_be_busy(self, resident: Resident) -> bool:
        """A model that computes for others answers later; not for ever, though."""
        now = asyncio.get_running_loop().time()
        return now - self._busy_since.setdefault(resident, now) < health.BUSY_LIMIT

    def _judge(self, resident: Resident, status: health.HealthStatus, *, hangs: bool) -> None:
        _log_oddities(resident, status)
        if resident.state is ModelState.LOADED:
            if hangs and status.must_leave:
                self._kill(resident)
            self._scheduler.checked(resident, status)
        elif self._lingers(resident):
            resident.health = status
            if status.requires_restart:
                self._kill(resident)

    def _kill(self, resident: Resident) -> None:
        """End the model's process, with the requests in it: they would be waited for for ever."""
        killed = self._effects.kill_processes(resident.servable)
        log.warning("a model that hangs is killed", model_id=resident.model_id, processes=killed)


def _log_oddities(resident: Resident, status: health.HealthStatus) -> None:
    if status.slow:
        log.warning(
            "test inference was slow",
            model_id=resident.model_id,
            response_time_ms=round(status.response_time_ms or 0.0),
        )
    if status.failing_often:
        log.warning(
            "test inferences go on failing",
            model_id=resident.model_id,
            consecutive_failures=status.consecutive_failures,
            reason=status.error_message,
        )
