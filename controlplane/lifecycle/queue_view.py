"""Who waits for a model to be loaded, in which order, and for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.lifecycle.resident import Resident, Waiter

_BY_STATE = {
    ModelState.LOADING: "load",
    ModelState.UNHEALTHY: "healing",
    ModelState.UNLOADING: "unload",
}


class WaitingView(msgspec.Struct, frozen=True, kw_only=True):
    """One request that waits.

    Attributes:
        priority: 1 (critical) to 4 (low).
        waits_for: load (it is under way), room (in memory), unload (it is just leaving), healing,
            version_switch (another version of the model is in memory), turn (it leaves for others
            and comes back), retry (a failed load is tried again soon), or triton.
    """

    model_id: str
    version: str
    priority: int
    waits_for: str
    waited_seconds: float


def waiting_views(
    residents: Iterable[Resident], now: float, *, server_up: bool
) -> tuple[WaitingView, ...]:
    """All who wait for a load, in the order of their turn (rule 5): priority, then arrival.

    Args:
        now: the event loop's clock, seconds.
    """
    every = list(residents)
    held = {resident.servable.triton_name for resident in every if resident.holds_memory}
    queue: list[tuple[int, int, WaitingView]] = []
    for resident in every:
        why = _waits_for(resident, held, now) if server_up else "triton"
        queue += ((w.priority, w.sequence, _view(w, why, now)) for w in resident.waiters)
    return tuple(shown for *_, shown in sorted(queue, key=lambda entry: entry[:2]))


def _waits_for(resident: Resident, held: set[str], now: float) -> str:
    if resident.state in _BY_STATE:
        return _BY_STATE[resident.state]
    if resident.yielding:
        return "turn"
    if resident.retry_at > now:
        return "retry"
    return "version_switch" if resident.servable.triton_name in held else "room"


def _view(waiter: Waiter, why: str, now: float) -> WaitingView:
    resident = waiter.resident
    return WaitingView(
        model_id=resident.model_id,
        version=resident.servable.version,
        priority=waiter.priority,
        waits_for=why,
        waited_seconds=round(max(0.0, now - waiter.since), 3),
    )
