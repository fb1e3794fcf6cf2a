"""Trying again: how often, how long, and when to stop."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog

from controlplane.registry.stopping import FetchCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.registry.stopping import Cancellation

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
# HTTP statuses that pass.
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class HubLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How patient we are with the hub and other sources; seconds.

    Attributes:
        answer: for a connection, and for the next bytes of an answer.
        resolve: for finding out the commit and its files, all attempts together.
        attempts: in a row without a single new byte.
        first_pause, longest_pause: between attempts, doubling; also the most that a hub's
            `Retry-After` is given.
    """

    answer: float = 10.0
    resolve: float = 60.0
    attempts: int = 5
    first_pause: float = 0.5
    longest_pause: float = 30.0


class Transient(Exception):
    """Worth another attempt, after `pause` seconds where the hub said so."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Patience:
    """Repeats calls that fail with `Transient`."""

    def __init__(self, limits: HubLimits, cancelled: Cancellation) -> None:
        self._limits = limits
        self._cancelled = cancelled

    def call(
        self,
        function: Callable[[], _T],
        *,
        count: Callable[[], int] = lambda: 0,
        deadline: float = float("inf"),
    ) -> _T:
        """Call until it succeeds, or fails `attempts` times in a row without new bytes.

        Args:
            count: bytes received so far.
            deadline: `time.monotonic()` after which no further attempt begins.

        Raises:
            Transient: the last failure.
            FetchCancelled: also while waiting between attempts.
        """
        failures, before = 0, count()
        while True:
            if self._cancelled.is_set():
                raise FetchCancelled
            try:
                return function()
            except Transient as error:
                failures = 1 if count() > before else failures + 1
                before = count()
                pause = self._pause(failures, error.pause)
                if failures >= self._limits.attempts or time.monotonic() + pause > deadline:
                    raise
                log.warning("source failed, trying again", error=str(error), pause=pause)
                self._cancelled.wait(pause)

    def _pause(self, failures: int, asked: float | None) -> float:
        doubled = self._limits.first_pause * 2.0 ** (failures - 1) * random.uniform(0.75, 1.25)
        return min(max(doubled, asked or 0.0), self._limits.longest_pause)
