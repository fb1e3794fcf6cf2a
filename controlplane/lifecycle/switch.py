"""A switch of a model's current version: what the scheduler keeps of it while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    import asyncio

    from controlplane.lifecycle.resident import Resident
    from controlplane.registry.model import Servable


class SwitchMode(str, Enum):
    """How a switch went."""

    LIVE = "live"  # the new version was loaded and healthy before the old one left
    DRAINED = "drained"  # no room for both: the old one left first, requests waited
    UNLOADED = "unloaded"  # nothing was in memory

    def __str__(self) -> str:
        return self.value


@dataclass(eq=False)
class Switch:
    """Requests that name no version are on their way from `old` to `new`.

    Attributes:
        together: Triton can serve both at a time.
        drained: the old version leaves before the new one is loaded.
        redirects: requests for the old version that named none are given to the new one.
        done: when the switch has ended, well or not; the next one of this model waits for it.
    """

    old: Resident
    new: Resident
    done: asyncio.Future[None]
    together: bool = True
    drained: bool = False
    redirects: bool = False

    def heir(self, servable: Servable) -> Servable:
        """Who serves a request for `servable` now."""
        if self.redirects and servable.floating and servable.key == self.old.servable.key:
            return self.new.servable
        return servable

    def lets_in(self, resident: Resident) -> bool:
        """True when the new version may be loaded although the old one is in memory."""
        return resident is self.new and not self.drained and self.old.state is ModelState.LOADED

    def holds_back(self, resident: Resident) -> bool:
        """True when a load must wait for the end of the switch, whoever asks for it.

        A third version would find both others protected; the old one, once it is on its way out,
        would come back before the new one.
        """
        if resident is self.new:
            return False
        return resident is not self.old or self.drained or self.redirects
