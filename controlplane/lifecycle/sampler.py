"""Measures what is in memory; sees when it is too much for a model, the budget, the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from controlplane import events
from controlplane.lifecycle import memory
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlplane.lifecycle.effects import TritonEffects
    from controlplane.lifecycle.memory_log import MemoryLog
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

# Domain §3.6: a model that takes so many times what was reserved for it is worth an alarm.
ALARM_FACTOR = 1.2
MACHINE, BUDGET, MODEL = "machine", "budget", "model"
SCOPES = frozenset({MACHINE, BUDGET, MODEL})


class Sampler:
    """Looks, tells the scheduler what it saw, and raises MemoryThresholdExceeded."""

    def __init__(
        self,
        scheduler: Scheduler,
        effects: TritonEffects,
        bus: events.EventBus,
        memory_log: MemoryLog,
        *,
        machine_mb: float,
        reserve_mb: float,
        available_mb: Callable[[], float] = memory.available_mb,
    ) -> None:
        """
        Args:
            machine_mb: memory of the machine, or of the control group.
            reserve_mb: what of it is to stay free.
            available_mb: tells how much of it is free.
        """
        self._scheduler = scheduler
        self._effects = effects
        self._bus = bus
        self._memory_log = memory_log
        self._machine_mb = machine_mb
        self._machine_limit_mb = machine_mb - reserve_mb
        self._available_mb = available_mb
        self._exceeded: set[str] = set()  # what has been told, by scope or version id

    async def measure(self) -> None:
        """Measure every loaded model; the ledger has it, and idle ones leave if it is too much."""
        usages = await self._effects.measure_all()
        loaded = [r for r in self._scheduler.residents() if r.state is ModelState.LOADED]
        for resident in loaded:
            usage = usages.get(resident.servable.key)
            if usage is not None:
                self._memory_log.sampled(resident.servable, usage)
                resident.gpu_mb = usage.gpu_mb
                self._scheduler.measured(resident, usage.used_mb)
        self._forget_all_but(loaded)
        for resident in loaded:
            self._check_model(resident)
        self._check(BUDGET, self._scheduler.used_mb, self._scheduler.budget_mb)

    def relieve(self) -> None:
        """When the machine runs short of memory, whoever uses it: unload an idle model.

        One at a time: the next look shows what it has brought.
        """
        if not self._check(
            MACHINE, self._machine_mb - self._available_mb(), self._machine_limit_mb
        ):
            return
        residents = self._scheduler.residents()
        if any(r.state is ModelState.UNLOADING for r in residents):
            return
        idle = [r for r in residents if r.candidate().evictable]
        if idle:
            victim = min(idle, key=lambda r: r.last_used)
            log.warning("memory is short: an idle model leaves", model_id=victim.model_id)
            self._scheduler.unload_idle(victim, "memory_pressure")

    def _check_model(self, resident: Resident) -> None:
        servable = resident.servable
        used_mb = resident.ledger_mb if resident.measured else 0.0
        self._check(MODEL, used_mb, ALARM_FACTOR * servable.need_mb, servable)

    def _check(
        self, scope: str, used_mb: float, limit_mb: float, servable: Servable | None = None
    ) -> bool:
        """Tell of a limit that is exceeded now and was not before; True while it is exceeded."""
        name = servable.version_id if servable else scope
        if used_mb <= limit_mb:
            self._exceeded.discard(name)
            return False
        if name not in self._exceeded:
            self._exceeded.add(name)
            event = events.MemoryThresholdExceeded(
                scope=scope,
                used_mb=round(used_mb, 1),
                threshold_mb=round(limit_mb, 1),
                model_id=servable.model_id if servable else None,
                version=servable.version if servable else None,
            )
            log.warning("memory threshold exceeded", **event.payload())
            self._bus.publish(event)
        return True

    def _forget_all_but(self, loaded: Iterable[Resident]) -> None:
        """A model that has left may exceed its share anew when it comes back."""
        self._exceeded &= {MACHINE, BUDGET, *(r.servable.version_id for r in loaded)}
