"""How fast bytes come, or are read."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_SECONDS = 5.0
_LEAST_SECONDS = 0.1  # less says nothing


class Rate:
    """Bytes per second over the last seconds; not thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._came: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, count: int) -> float | None:
        """Count bytes that came now; the rate, or None while it cannot be told."""
        now = self._clock()
        self._came.append((now, count))
        self._sum += count
        while now - self._came[0][0] > _WINDOW_SECONDS:
            self._sum -= self._came.popleft()[1]
        seconds = now - self._came[0][0]
        return self._sum / seconds if seconds > _LEAST_SECONDS else None
