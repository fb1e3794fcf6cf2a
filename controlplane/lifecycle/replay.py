"""What the events of a model tell of its state. Rules only; no clock, no I/O.

Each move of the state machine (`state.py`) publishes one event, so whoever reads the events of a
model in order knows its state at every moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TOLD = {
    "model.load.requested": ModelState.LOADING,
    "model.loaded": ModelState.LOADED,
    "model.load.failed": ModelState.FAILED,
    "model.failure.cleared": ModelState.UNLOADED,
    "model.unload.requested": ModelState.UNLOADING,
    "model.unloaded": ModelState.UNLOADED,
}


def state_told(event_type: str, payload: Mapping[str, Any]) -> ModelState | None:
    """The state a model has after an event; None for events that are no moves."""
    if event_type == "model.health.changed":
        return ModelState(payload["new_state"])
    return _TOLD.get(event_type)


def replay(events: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[tuple[str, str], ModelState]:
    """States by (model id, version) after these events, given as (type, payload), in order."""
    states: dict[tuple[str, str], ModelState] = {}
    for event_type, payload in events:
        state = state_told(event_type, payload)
        if state is not None:
            states[payload["model_id"], payload["version"]] = state
    return states
