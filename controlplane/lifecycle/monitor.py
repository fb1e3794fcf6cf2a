"""Watches what is in memory: dead stubs, growth, idle models, test inferences. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from controlplane import events
from controlplane.errors import ModelMoraError
from controlplane.lifecycle import health
from controlplane.lifecycle.policy import idle_limit
from controlplane.lifecycle.state import ModelState
from controlplane.triton.failures import TritonError

if TYPE_CHECKING:
    from controlplane.lifecycle.effects import TritonEffects
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

# A dead stub keeps reporting ready (triton-facts); its process is looked for this often.
TICK = 1.0
MEASURE_EVERY = 10.0


class Monitor:
    """A background task beside the scheduler; reports to it what it sees."""

    def __init__(
        self, scheduler: Scheduler, effects: TritonEffects, *, idle_ttl: float | None
    ) -> None:
        self._scheduler = scheduler
        self._effects = effects
        self._idle_ttl = idle_ttl
        self._task: asyncio.Task[None] | None = None
        self._next_measure = 0.0
        self._suspects: set[tuple[str, int]] = set()
        self._wake = asyncio.Event()

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
        """One look at every loaded model."""
        now = asyncio.get_running_loop().time()
        measure = now >= self._next_measure
        if measure:
            self._next_measure = now + MEASURE_EVERY
        for resident in self._scheduler.residents():
            if resident.state is ModelState.LOADED:
                await self._look_at(resident, now, measure=measure)

    async def _look_at(self, resident: Resident, now: float, *, measure: bool) -> None:
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
        if measure:
            memory_mb = await self._effects.measure(resident.servable)
            if memory_mb is not None:
                self._scheduler.measured(resident, memory_mb)
        if self._check_is_due(resident, now):
            await self._check(resident)

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

    async def _check(self, resident: Resident) -> None:
        try:
            response_time_ms = await self._effects.probe(resident.servable)
        except (TritonError, ModelMoraError) as error:
            status = health.after_failure(resident.health, events.utc_now(), str(error))
        else:
            status = health.after_success(events.utc_now(), response_time_ms)
        if resident.state is ModelState.LOADED:  # it may have left while we asked
            self._scheduler.checked(resident, status)
