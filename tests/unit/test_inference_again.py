"""Which failures of Triton's mean that a request was not run, so that it may run once more."""

from __future__ import annotations

import pytest

from controlplane.errors import InferenceFailed, ModelMoraError
from controlplane.inference.again import was_lost
from controlplane.triton.failures import TritonError, failure_of

DEAD = "Stub process 'a--b_0_0' is not healthy."
RESTARTED = "Stub process is unhealthy and it will be restarted."


@pytest.mark.parametrize(
    ("status", "text", "lost"),
    [
        ("INTERNAL", DEAD, True),
        ("INTERNAL", RESTARTED, True),
        ("UNAVAILABLE", "Socket closed", True),
        ("UNAVAILABLE", "Request for unknown model: 'a--b' is not found", True),
        ("INVALID_ARGUMENT", "Request for unknown model: 'a--b' version 1 is not ready", True),
        ("UNAVAILABLE", "Exceeds maximum queue size", False),
        ("UNAVAILABLE", "Request timeout expired", False),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", False),
        ("INVALID_ARGUMENT", "unexpected shape for input 'text_input'", False),
        ("INTERNAL", "the model raised: ValueError", False),
    ],
)
def test_only_the_dead_and_the_gone(status: str, text: str, lost: bool) -> None:
    assert was_lost(_caused_by(failure_of(f"StatusCode.{status}", text))) is lost


def test_what_was_not_triton_s_is_not_run_again() -> None:
    assert not was_lost(InferenceFailed("a/b", DEAD))


def _caused_by(cause: TritonError) -> ModelMoraError:
    try:
        raise InferenceFailed("a/b", cause.message) from cause
    except InferenceFailed as error:
        return error
