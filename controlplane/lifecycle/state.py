"""States of a model in memory and the moves between them (domain §3.4, §3.5). Rules only."""

from __future__ import annotations

from enum import Enum

from controlplane.errors import InvalidStateTransition


class ModelState(str, Enum):
    """Where a model stands between the disk and its clients."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNHEALTHY = "unhealthy"
    UNLOADING = "unloading"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


MOVES: dict[ModelState, frozenset[ModelState]] = {
    ModelState.UNLOADED: frozenset({ModelState.LOADING, ModelState.FAILED}),
    ModelState.LOADING: frozenset({ModelState.LOADED, ModelState.FAILED}),
    ModelState.LOADED: frozenset({ModelState.UNHEALTHY, ModelState.UNLOADING, ModelState.UNLOADED}),
    ModelState.UNHEALTHY: frozenset({ModelState.UNLOADING, ModelState.LOADED}),
    ModelState.UNLOADING: frozenset({ModelState.UNLOADED}),
    # loading -> failed: the load failed. unloaded -> failed: it was unhealthy too often in a row.
    ModelState.FAILED: frozenset({ModelState.UNLOADED}),
}

# States in which a model's memory counts against the budget: also while it is being freed.
HOLDING_MEMORY = frozenset(
    {ModelState.LOADING, ModelState.LOADED, ModelState.UNHEALTHY, ModelState.UNLOADING}
)


def move(model_id: str, current: ModelState, target: ModelState) -> ModelState:
    """`target`, when the move from `current` is legal.

    Raises:
        InvalidStateTransition: otherwise.
    """
    if target not in MOVES[current]:
        raise InvalidStateTransition(model_id, current.value, target.value)
    return target
