"""The scheduler's books: every model it knows of, what memory they count, which switches run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.lifecycle.policy import Room
from controlplane.lifecycle.resident import Resident
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from controlplane.lifecycle.switch import Switch
    from controlplane.registry.model import Servable

Key = tuple[str, int]


class Ledger:
    """What the scheduler's parts share: written by them alone, on one event loop.

    Attributes:
        budget_mb, max_models: what may be in memory at a time.
        residents: by Triton name and version; also models that are not in memory any more.
        switches: the running switches of versions, by Triton name.
        server_up: False between the loss of Triton and its return.
        closing: the service stops; nothing is loaded any more.
    """

    def __init__(self, budget_mb: float, max_models: int) -> None:
        self.budget_mb = budget_mb
        self.max_models = max_models
        self.residents: dict[Key, Resident] = {}
        self.switches: dict[str, Switch] = {}
        self.server_up = True
        self.closing = False

    def resident(self, servable: Servable) -> Resident:
        """The books of a model version, opened where there are none."""
        resident = self.residents.setdefault(servable.key, Resident(servable))
        if resident.state is ModelState.UNLOADED:
            resident.servable = servable
        return resident

    def switch_of(self, resident: Resident) -> Switch | None:
        """The running switch of the resident's model."""
        return self.switches.get(resident.servable.triton_name)

    def heir(self, servable: Servable) -> Servable:
        """Who serves a request for `servable` now: another version after a switch's commit."""
        switch = self.switches.get(servable.triton_name)
        return servable if switch is None else switch.heir(servable)

    @property
    def used_mb(self) -> float:
        """Memory that counts against the budget."""
        return sum(r.ledger_mb for r in self.residents.values() if r.holds_memory)

    def free(self) -> Room:
        """What may still be reserved; negative when models grew beyond the budget."""
        holding = sum(1 for r in self.residents.values() if r.holds_memory)
        return Room(self.budget_mb - self.used_mb, self.max_models - holding)

    @staticmethod
    def now() -> float:
        """The event loop's clock, in seconds."""
        return asyncio.get_running_loop().time()
