"""The right to use a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable


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

    @property
    def is_of_use(self) -> bool:
        """False when the model is leaving: nothing can be run under the lease, it only delays."""
        return self._resident is not None and self._resident.state is ModelState.LOADED

    @property
    def process_id(self) -> int | None:
        """Of the model that is leased; None where it cannot be seen."""
        return None if self._resident is None else self._resident.process_id

    def try_enter(self) -> Servable | None:
        """What `async with` gives, where it can be had without waiting; end it with `leave`."""
        resident = self._scheduler.try_acquire(self._servable)
        if resident is None:
            return None
        if not resident.gate.try_enter():
            self._scheduler.release(resident)
            return None
        self._resident = resident
        return resident.servable

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
        self.leave()

    @property
    def servable(self) -> Servable:
        """What is leased: another version than was asked for where a switch has taken place."""
        assert self._resident is not None
        return self._resident.servable

    def leave(self) -> None:
        """End the lease; harmless when there is none."""
        resident, self._resident = self._resident, None
        if resident is not None:
            resident.gate.leave()
            self._scheduler.release(resident)

    def without_place(self) -> PlacelessLease:
        """Give the place among the running requests back, and go on holding the model."""
        lease = PlacelessLease(self._scheduler, self._servable, self._deadline, self._priority)
        lease._resident, self._resident = self._resident, None
        if lease._resident is not None:
            lease._resident.gate.leave()
        return lease


class PlacelessLease(Lease):
    """A lease without a place among the model's running requests (`admission.py`).

    For what may hold the model for as long as it likes, or must not wait for those who run.
    """

    __slots__ = ()

    def try_enter(self) -> Servable | None:
        resident = self._resident = self._scheduler.try_acquire(self._servable)
        return None if resident is None else resident.servable

    async def __aenter__(self) -> Servable:
        servable = self.try_enter()
        if servable is not None:
            return servable
        self._resident = await self._scheduler.wait_until_loaded(
            self._servable, self._deadline, self._priority
        )
        return self._resident.servable

    def leave(self) -> None:
        resident, self._resident = self._resident, None
        if resident is not None:
            self._scheduler.release(resident)

    def without_place(self) -> PlacelessLease:
        return self
