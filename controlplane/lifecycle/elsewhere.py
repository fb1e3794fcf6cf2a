"""Sees in Triton's statistics that models are used by clients who talk to Triton directly.

Such a model is not idle, though no request for it came through the gateway. Triton's clock is not
used: it may be another machine's.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from controlplane import events
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.triton.client import TritonClient


Key = tuple[str, int]


class Seen(NamedTuple):
    """A model's counters at one moment.

    Attributes:
        load: which load of the model: counters begin anew with each.
        leased: requests that we have let through.
        surplus: requests that Triton has answered well, without our test inferences.
    """

    load: float
    leased: int
    surplus: int


def used_elsewhere(before: Seen | None, now: Seen) -> bool:
    """Whether Triton has answered requests that were not ours between two moments.

    Where some were ours the question does not matter, and the answer is no: the model's last use
    is known from them.
    """
    if before is None or before.load != now.load or before.leased != now.leased:
        return False
    return now.surplus > before.surplus


def answered(statistics: Mapping[str, Any]) -> int:
    """Requests answered well, from Triton's `ModelStatistics` (64-bit numbers are strings)."""
    success = statistics.get("inference_stats", {}).get("success", {})
    return int(success.get("count", 0))


class Probes:
    """Counts our own test inferences, by Triton name and version, and knows those under way."""

    def __init__(self) -> None:
        self._begun: Counter[Key] = Counter()
        self._running: Counter[Key] = Counter()

    def begin(self, key: Key) -> None:
        """One begins; `end` must follow."""
        self._begun[key] += 1
        self._running[key] += 1

    def end(self, key: Key) -> None:
        """One is over, answered or not."""
        self._running[key] -= 1

    def count(self, key: Key) -> int | None:
        """How many there were; None while one is under way."""
        return None if self._running[key] else self._begun[key]


class Elsewhere:
    """Compares the counters of all loaded models with those of the look before."""

    def __init__(self, client: TritonClient, scheduler: Scheduler, probes: Probes) -> None:
        self._client = client
        self._probes = probes
        self._scheduler = scheduler
        self._seen: dict[Key, Seen] = {}

    async def look(self) -> None:
        """Tell the scheduler of models that are used elsewhere.

        Raises:
            TritonError: the statistics cannot be read.
        """
        loaded = [r for r in self._scheduler.residents() if r.state is ModelState.LOADED]
        if not loaded:
            self._seen.clear()
            return
        keys = [resident.servable.key for resident in loaded]
        before = {key: self._probes.count(key) for key in keys}
        counters = await self._client.all_statistics()
        self._seen = {key: seen for key, seen in self._seen.items() if key in before}
        for resident in loaded:
            # A test inference that was under way is in one of the counters only: next time.
            probed = before[resident.servable.key]
            if probed is not None and probed == self._probes.count(resident.servable.key):
                self._compare(resident, counters, probed)

    def _compare(
        self,
        resident: Resident,
        counters: Mapping[Key, Mapping[str, Any]],
        probed: int,
    ) -> None:
        key = resident.servable.key
        statistics = counters.get(key)
        if statistics is None or resident.state is not ModelState.LOADED:
            return
        surplus = answered(statistics) - probed
        seen = Seen(resident.loaded_clock, resident.request_count, surplus)
        before, self._seen[key] = self._seen.get(key), seen
        if resident.leases == 0 and used_elsewhere(before, seen):
            self._scheduler.used_elsewhere(resident, events.utc_now().timestamp())
