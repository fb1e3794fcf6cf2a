"""Waiting for a load, to one's own deadline; who gives up leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from controlplane.errors import (
    InsufficientMemory,
    LoadTimeout,
    ModelMoraError,
    ModelUnhealthy,
    ServiceUnavailable,
)
from controlplane.lifecycle.resident import Resident, Waiter
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.lifecycle.ledger import Ledger
    from controlplane.registry.model import Servable


class Waiting:
    """Puts callers into the line of a model and takes them out again."""

    def __init__(
        self,
        ledger: Ledger,
        decide: Callable[[], None],
        release: Callable[[Resident], None],
        clear_failure: Callable[[Resident, str], None],
    ) -> None:
        self._ledger = ledger
        self._decide = decide
        self._release = release
        self._clear_failure = clear_failure
        self._sequence = itertools.count()

    async def wait(
        self, servable: Servable, deadline: float, priority: int, *, takes_lease: bool
    ) -> Resident:
        """Have the model loaded and wait for it; raises as `Scheduler.lease`."""
        resident = self._resident_for(self._ledger.heir(servable))
        waiter = Waiter(
            resident,
            asyncio.get_running_loop().create_future(),
            priority,
            next(self._sequence),
            takes_lease,
            servable.floating,
            self._ledger.now(),
        )
        resident.enlist(waiter)
        self._decide()
        try:
            await asyncio.wait({waiter.future}, timeout=max(0.0, deadline - self._ledger.now()))
            if waiter.future.done():
                waiter.future.result()
                return waiter.resident
        except BaseException:
            self._abandon(waiter)
            raise
        error = self._too_late(waiter.resident)
        self._abandon(waiter)
        raise error

    def _resident_for(self, servable: Servable) -> Resident:
        if self._ledger.closing:
            raise ServiceUnavailable("The service is stopping.")
        resident = self._ledger.resident(servable)
        if resident.state is ModelState.UNLOADED:
            reason = self._ledger.never_fits(resident)
            if reason is not None:
                raise reason
        if resident.state is ModelState.FAILED:
            self._try_failed_again(resident)
        return resident

    def _try_failed_again(self, resident: Resident) -> None:
        wait = resident.retry_at - self._ledger.now()
        if wait > 0 and resident.error is not None:
            resident.error.retry_after = wait
            # One object answers many callers: without this its traceback would grow with each.
            raise resident.error.with_traceback(None)
        self._clear_failure(resident, "retry")

    def _abandon(self, waiter: Waiter) -> None:
        resident = waiter.resident
        if waiter in resident.waiters:
            resident.waiters.remove(waiter)
            self._decide()
        elif waiter.takes_lease and waiter.granted:
            self._release(resident)  # granted in the very moment its owner gave up

    def _too_late(self, resident: Resident) -> ModelMoraError:
        if not self._ledger.server_up:
            return ServiceUnavailable("Triton is down and is being restarted.")
        if resident.state is ModelState.LOADING:
            now = self._ledger.now()
            began = now - (resident.loaded_clock or now)
            return LoadTimeout(resident.model_id, max(round(began, 1), 0.1))
        if isinstance(resident.error, ServiceUnavailable | ModelUnhealthy):
            return resident.error.with_traceback(None)
        return InsufficientMemory(resident.model_id, resident.need_mb, self._ledger.budget_mb)
