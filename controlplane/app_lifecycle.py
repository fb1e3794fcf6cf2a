"""The composition root's part that keeps models and Triton going: who watches what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import DatabaseUnusable, InsufficientDisk, ServiceUnavailable
from controlplane.lifecycle.effects import TritonEffects
from controlplane.lifecycle.gpu import find_gpus
from controlplane.lifecycle.keeping import Keeping
from controlplane.lifecycle.memory_log import MemoryLog
from controlplane.lifecycle.monitor import Monitor
from controlplane.lifecycle.reconcile import Reconciler
from controlplane.lifecycle.sampler import Sampler
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.registry.keeping import MemoryLimits
from controlplane.settings import machine_memory_mb

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.events import EventBus
    from controlplane.lifecycle.memory import MemoryUsage
    from controlplane.lifecycle.memory_log import Reason
    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings
    from controlplane.triton.client import TritonClient
    from controlplane.triton.server import TritonServer

log = structlog.get_logger(__name__)


class Lifecycle:
    """The scheduler and those who watch for it: monitor, reconciler, the server's supervision."""

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        repository: ModelRepository,
        server: TritonServer,
        client: TritonClient,
        bus: EventBus,
    ) -> None:
        memory_log = MemoryLog(_writer(store))
        effects = TritonEffects(
            client, server, repository, gpus=find_gpus(), on_load=memory_log.loaded
        )
        self.scheduler = Scheduler(
            effects,
            bus,
            budget_mb=settings.memory_budget_mb,
            max_models=settings.max_models,
            load_timeout=settings.load_timeout,
            record_memory=lambda servable, mb: _noting(
                lambda: store.record_memory(servable.version_id, mb)
            ),
        )
        store.memory_limits = MemoryLimits(settings.memory_budget_mb, settings.max_models)
        self.keeping = Keeping(store, self.scheduler, bus)
        sampler = Sampler(
            self.scheduler,
            effects,
            bus,
            memory_log,
            machine_mb=machine_memory_mb(),
            reserve_mb=settings.memory_reserve,
        )
        self.monitor = Monitor(self.scheduler, effects, idle_ttl=settings.idle_ttl, sampler=sampler)
        self._reconciler = Reconciler(
            client,
            effects,
            self.scheduler,
            store.triton_names,
            is_up=lambda: server.state == "ready",
        )
        self._server = server
        self._client = client
        self._coming_back: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin with a Triton that holds nothing of ours, or wait for one that is away."""
        self._server.on_lost.append(self._lost)
        self._server.on_restored.append(self._restored)
        if self._server.state == "ready":
            await self._reconciler.run_once()
        else:
            self.scheduler.server_lost()
        self.monitor.start()
        self._reconciler.start()

    async def stop(self) -> None:
        """Let running requests end, unload everything, stop watching."""
        await self.monitor.stop()
        await self._reconciler.stop()
        await self._end_coming_back()
        await self.scheduler.close()

    def _lost(self) -> None:
        if self._coming_back is not None:
            self._coming_back.cancel()
        self.scheduler.server_lost()

    def _restored(self) -> None:
        self._client.reconnect(self._server.endpoints)
        self._coming_back = asyncio.get_running_loop().create_task(self._come_back())

    async def _come_back(self) -> None:
        """Loads begin when nothing is in memory that is not in the ledger.

        A server that was only out of reach still has what was loaded before.
        """
        await self._reconciler.run_once()
        if self._server.state == "ready":
            self.scheduler.server_restored()

    async def _end_coming_back(self) -> None:
        if self._coming_back is not None:
            self._coming_back.cancel()
            await asyncio.gather(self._coming_back, return_exceptions=True)


def _writer(store: ModelStore) -> Callable[[str, MemoryUsage, float, Reason], None]:
    def write(version_id: str, usage: MemoryUsage, peak_mb: float, reason: Reason) -> None:
        _noting(
            lambda: store.memory_history.add(
                version_id,
                used_mb=usage.used_mb,
                peak_mb=peak_mb,
                gpu_mb=usage.gpu_mb,
                reason=reason,
            )
        )

    return write


def _noting(write: Callable[[], object]) -> None:
    """Write a figure; that it cannot be kept is no reason not to serve the model."""
    try:
        write()
    except (DatabaseUnusable, InsufficientDisk, ServiceUnavailable) as error:
        log.warning("a measurement is not kept", reason=error.message)
