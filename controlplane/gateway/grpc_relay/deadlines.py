"""When calls must end: one timer of the event loop for all of them.

A timer for each call would take longer than all else that is done for most calls: nearly all have
ended long before. So the loop is asked for the earliest time alone; when that comes, those that are
late are ended, and the next time is looked for among those that are left.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

_TICK = 0.001  # what uvloop's timers may be early, in seconds


class Timed(Protocol):
    """What ends at a time.

    Attributes:
        deadline: on the event loop's clock.
    """

    deadline: float

    def time_is_up(self) -> None:
        """End."""


class Deadlines:
    """Those that have a deadline; all on one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timed: dict[Timed, None] = {}
        # No deadline is earlier; that of a call which has ended meanwhile may have been.
        self._earliest = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, timed: Timed) -> bool:
        return timed in self._timed

    def add(self, timed: Timed) -> None:
        """Have it end at its deadline, which may be another than before."""
        self._timed[timed] = None
        if timed.deadline < self._earliest:
            self._wake_at(timed.deadline)

    def discard(self, timed: Timed) -> None:
        """It has ended, or may take as long as it likes."""
        self._timed.pop(timed, None)

    def close(self) -> None:
        """End nothing any more."""
        self._timed.clear()
        self._wake_at(math.inf)

    def _wake_at(self, when: float) -> None:
        self._earliest = when
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when < math.inf:
            self._timer = self._loop.call_at(when, self._end_late)

    def _end_late(self) -> None:
        now = self._loop.time() + _TICK
        late = [timed for timed in self._timed if timed.deadline <= now]
        left = (timed.deadline for timed in self._timed if timed.deadline > now)
        self._wake_at(min(left, default=math.inf))
        for timed in late:
            if self._timed.pop(timed, late) is None:  # else another that was late has ended it
                timed.time_is_up()
