"""Ends streams whose model has died under a request.

Triton (2.51) says nothing more on the stream of a decoupled model whose process has taken the
request and died, and a stream may have no deadline: its client would wait for ever, and so would
the healing of the model, which the request has leased.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from controlplane.lifecycle import memory

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

EVERY = 0.5  # seconds


class Running(Protocol):
    """A stream that waits for answers."""

    def processes(self) -> AbstractSet[int]:
        """Ids of the processes that it waits for."""

    def process_died(self) -> None:
        """One of them has."""


class Vigil:
    """Looks after those that wait for answers; all on one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: dict[Running, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, running: Running) -> None:
        """Look after it, if that is not done already."""
        self._running[running] = None
        if self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._look)

    def end(self, running: Running) -> None:
        """It waits for nothing any more."""
        self._running.pop(running, None)

    def close(self) -> None:
        """Look after nobody any more."""
        self._running.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        waiting = {running: running.processes() for running in self._running}
        seen = set[int]().union(*waiting.values())
        dead = {pid for pid in seen if not memory.alive(pid)}
        for running, processes in waiting.items():
            if processes & dead:
                running.process_died()
        if self._running and self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._look)
