"""Sees in Triton's statistics that models are used by clients who talk to Triton directly.

Such a model is not idle, though no request for it came through the gateway. Triton's clock is not
used: it may be another machine's.
"""

from __future__ import annotations

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
        surplus: requests that Triton has answered well, without our test inferences: the most
            that was ever seen, as a test that is under way is counted before its answer.
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


def after(before: Seen | None, now: Seen) -> Seen:
    """What to compare the next look with."""
    if before is None or before.load != now.load or before.leased != now.leased:
        return now
    return now._replace(surplus=max(before.surplus, now.surplus))


def answered(statistics: Mapping[str, Any]) -> int:
    """Requests answered well, from Triton's `ModelStatistics` (64-bit numbers are strings)."""
    success = statistics.get("inference_stats", {}).get("success", {})
    return int(success.get("count", 0))


class Elsewhere:
    """Compares the counters of all loaded models with those of the look before."""

    def __init__(
        self, client: TritonClient, scheduler: Scheduler, probes: Mapping[Key, int]
    ) -> None:
        """`probes` counts the test inferences that were begun, by Triton name and version."""
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
        counters = await self._client.all_statistics()
        previous, self._seen = self._seen, {}
        for resident in loaded:
            self._compare(resident, previous, counters)

    def _compare(
        self,
        resident: Resident,
        previous: Mapping[Key, Seen],
        counters: Mapping[Key, Mapping[str, Any]],
    ) -> None:
        key = resident.servable.key
        statistics = counters.get(key)
        if statistics is None or resident.state is not ModelState.LOADED:
            return
        surplus = answered(statistics) - self._probes.get(key, 0)
        seen = Seen(resident.loaded_clock, resident.request_count, surplus)
        before = previous.get(key)
        self._seen[key] = after(before, seen)
        if resident.leases == 0 and used_elsewhere(before, seen):
            self._scheduler.used_elsewhere(resident, events.utc_now().timestamp())
