"""Which measurements are worth keeping: each load's, and each change that a reader would notice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.lifecycle.memory import MemoryUsage
    from controlplane.registry.model import Servable

# Part of the last record by which a model must have grown or shrunk for another one.
CHANGE = 0.05
Reason = Literal["load", "change"]


@dataclass
class _Last:
    used_mb: float
    peak_mb: float


class MemoryLog:
    """Told of every measurement; writes those that matter."""

    def __init__(self, write: Callable[[str, MemoryUsage, float, Reason], None]) -> None:
        """`write` takes a version's id, what it takes, the most in MB since its load, and why."""
        self._write = write
        self._last: dict[str, _Last] = {}

    def loaded(self, servable: Servable, usage: MemoryUsage) -> None:
        """A load has been measured."""
        self._last[servable.version_id] = _Last(usage.used_mb, usage.used_mb)
        self._write(servable.version_id, usage, usage.used_mb, "load")

    def sampled(self, servable: Servable, usage: MemoryUsage) -> None:
        """A loaded model has been measured again."""
        last = self._last.get(servable.version_id)
        if last is None:
            self.loaded(servable, usage)
            return
        last.peak_mb = max(last.peak_mb, usage.used_mb)
        if abs(usage.used_mb - last.used_mb) > CHANGE * last.used_mb:
            last.used_mb = usage.used_mb
            self._write(servable.version_id, usage, last.peak_mb, "change")
