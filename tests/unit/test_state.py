"""The state machine of domain §3.5."""

from __future__ import annotations

import itertools

import pytest

from controlplane.errors import InvalidStateTransition
from controlplane.lifecycle.state import MOVES, ModelState, move

LEGAL = {
    ("unloaded", "loading"),
    ("loading", "loaded"),
    ("loading", "failed"),
    ("loaded", "unhealthy"),
    ("loaded", "unloading"),
    ("loaded", "unloaded"),
    ("unloading", "unloaded"),
    ("unhealthy", "unloading"),
    ("unhealthy", "loaded"),
    ("failed", "unloaded"),
    ("unloaded", "failed"),
}


@pytest.mark.parametrize(("current", "target"), list(itertools.product(ModelState, ModelState)))
def test_exactly_the_legal_moves_are_possible(current: ModelState, target: ModelState) -> None:
    if (current.value, target.value) in LEGAL:
        assert move("org/m", current, target) is target
        return
    with pytest.raises(InvalidStateTransition) as caught:
        move("org/m", current, target)
    assert caught.value.details["current"] == current.value


def test_every_state_can_be_left() -> None:
    assert set(MOVES) == set(ModelState)
    assert all(MOVES.values())
