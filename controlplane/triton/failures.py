"""What goes wrong with a Triton server, as facts."""

from __future__ import annotations

import re


class TritonError(Exception):
    """Base; `message` is Triton's own text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TritonUnavailable(TritonError):
    """The server cannot be reached, or went away during the call."""


class QueueFull(TritonUnavailable):
    """The model's queue has no room for another request."""


class TritonTimeout(TritonError):
    """No answer in the time given; what was asked for may still happen."""


class ModelUnknown(TritonError):
    """The server has no such model, or that version is not loaded."""


class RequestRejected(TritonError):
    """The request does not fit the model, or is not allowed."""


class ModelFailed(TritonError):
    """The model raised, could not be loaded, or its process is dead."""


class StubUnhealthy(ModelFailed):
    """The model's process does not answer Triton: it is dead, stopped or starved."""


# Texts before codes: an unknown model answers UNAVAILABLE, NOT_FOUND or INVALID_ARGUMENT,
# depending on call and version (server#3399), a failed load INVALID_ARGUMENT or INTERNAL, and a
# queue timeout UNAVAILABLE.
_BY_TEXT: tuple[tuple[re.Pattern[str], type[TritonError]], ...] = (
    (re.compile(r"request timeout expired", re.IGNORECASE), TritonTimeout),
    (re.compile(r"exceeds maximum queue size", re.IGNORECASE), QueueFull),
    (re.compile(r"(API|protocol) is restricted", re.IGNORECASE), RequestRejected),
    # Before failed loads: one whose process was killed meanwhile may go well the next time.
    (re.compile(r"stub process .* is not healthy", re.IGNORECASE), StubUnhealthy),
    (re.compile(r"^load failed for model"), ModelFailed),
    (
        re.compile(
            r"unknown model|has no available versions|failed to poll from model repository"
            r"|is not found|is not at ready state|is not ready|not found in the repository",
            re.IGNORECASE,
        ),
        ModelUnknown,
    ),
)
_BY_CODE: dict[str, type[TritonError]] = {
    "DEADLINE_EXCEEDED": TritonTimeout,
    "UNAVAILABLE": TritonUnavailable,
    "CANCELLED": TritonUnavailable,
    "NOT_FOUND": ModelUnknown,
    "INVALID_ARGUMENT": RequestRejected,
    "RESOURCE_EXHAUSTED": RequestRejected,
    "OUT_OF_RANGE": RequestRejected,
    "ALREADY_EXISTS": RequestRejected,
    "UNIMPLEMENTED": RequestRejected,
    "UNAUTHENTICATED": RequestRejected,
    "PERMISSION_DENIED": RequestRejected,
}


# How our decoupled backends say it where there is no code (backends/triton.py).
_MARKED = re.compile(r"\[INVALID_ARGUMENT\] (.*)", re.DOTALL)


def failure_of(status: str | None, message: str | None) -> TritonError:
    """The failure that a gRPC status ("StatusCode.NOT_FOUND") and its text stand for."""
    text = message or "no message"
    if marked := _MARKED.search(text):
        return RequestRejected(marked[1])
    for pattern, kind in _BY_TEXT:
        if pattern.search(text):
            return kind(text)
    code = (status or "").removeprefix("StatusCode.")
    return _BY_CODE.get(code, ModelFailed)(text)
