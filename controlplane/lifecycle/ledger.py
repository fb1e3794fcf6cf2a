"""The scheduler's books: every model it knows of, what memory they count, which switches run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.errors import InsufficientMemory
from controlplane.lifecycle.policy import ModelPolicy, Room
from controlplane.lifecycle.resident import Resident
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from controlplane.lifecycle.switch import Switch
    from controlplane.registry.model import Servable

Key = tuple[str, int]
DEFAULT_POLICY = ModelPolicy()


class Ledger:
    """What the scheduler's parts share: written by them alone, on one event loop.

    Attributes:
        budget_mb, max_models: what may be in memory at a time.
        residents: by Triton name and version; also models that are not in memory any more.
        active: those of them that hold memory, are waited for or desired; perhaps a few more.
        policies: by model id; absent is the default.
        switches: the running switches of versions, by Triton name.
        server_up: False between the loss of Triton and its return.
        closing: the service stops; nothing is loaded any more.
    """

    def __init__(self, budget_mb: float, max_models: int) -> None:
        self.budget_mb = budget_mb
        self.max_models = max_models
        self.residents: dict[Key, Resident] = {}
        self.active: dict[Key, Resident] = {}
        self.policies: dict[str, ModelPolicy] = {}
        self.switches: dict[str, Switch] = {}
        self.server_up = True
        self.closing = False

    def resident(self, servable: Servable) -> Resident:
        """The books of a model version, opened where there are none."""
        resident = self.residents.get(servable.key)
        if resident is None:
            resident = self.residents[servable.key] = Resident(servable)
            self.apply_policy(resident)
        if resident.state is ModelState.UNLOADED:
            resident.servable = servable
        self.active[servable.key] = resident
        return resident

    def apply_policy(self, resident: Resident) -> None:
        """Have a resident follow its model's policy."""
        policy = self.policies.get(resident.model_id, DEFAULT_POLICY)
        resident.keep_loaded, resident.idle_ttl = policy.keep_loaded, policy.idle_ttl

    def prune(self) -> None:
        """Take those out of `active` for which there is nothing to decide."""
        resting = {ModelState.UNLOADED, ModelState.FAILED}
        for key, resident in tuple(self.active.items()):
            if resident.state in resting and not resident.waiters and not resident.desired:
                del self.active[key]

    def forget(self, model_id: str, triton_version: int | None) -> None:
        """Close the books of a model, or of one version, where nothing is left to decide."""
        self.prune()
        for key, resident in tuple(self.residents.items()):
            named = resident.model_id == model_id and triton_version in (None, key[1])
            if named and key not in self.active and resident.leases == 0:
                del self.residents[key]

    def switch_of(self, resident: Resident) -> Switch | None:
        """The running switch of the resident's model."""
        return self.switches.get(resident.servable.triton_name)

    def heir(self, servable: Servable) -> Servable:
        """Who serves a request for `servable` now: another version after a switch's commit."""
        switch = self.switches.get(servable.triton_name)
        return servable if switch is None else switch.heir(servable)

    def holding(self) -> list[Resident]:
        """Those that count against the budget."""
        return [resident for resident in self.active.values() if resident.holds_memory]

    @property
    def used_mb(self) -> float:
        """Memory that counts against the budget."""
        return sum(resident.ledger_mb for resident in self.holding())

    def free(self) -> Room:
        """What may still be reserved; negative when models grew beyond the budget."""
        holding = self.holding()
        used = sum(resident.ledger_mb for resident in holding)
        return Room(self.budget_mb - used, self.max_models - len(holding))

    def never_fits(self, resident: Resident) -> InsufficientMemory | None:
        """Why a model could not be loaded even if all others left that may; None when it could."""
        name, need = resident.servable.triton_name, resident.need_mb
        if need > self.budget_mb:
            return InsufficientMemory(resident.model_id, need, self.budget_mb, ever=True)
        kept = [r for r in self.holding() if r.keep_loaded and r.servable.triton_name != name]
        kept_mb = sum(r.ledger_mb for r in kept)
        if need > self.budget_mb - kept_mb or len(kept) >= self.max_models:
            return InsufficientMemory(
                resident.model_id, need, self.budget_mb, kept_mb=kept_mb, kept_models=len(kept)
            )
        return None

    @staticmethod
    def now() -> float:
        """The event loop's clock, in seconds."""
        return asyncio.get_running_loop().time()
