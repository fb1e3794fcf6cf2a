"""How many requests of one model are at Triton at a time, and who goes next.

Triton's own priorities and queue limits make its batcher sleep for half a second at a time
(docs/benchmarks.md), so they are enforced here: a model's requests beyond `RUNNING` wait in order
of priority, then of arrival (domain §4.4); beyond `WAITING` they are refused (domain §4.5).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

from controlplane.errors import InferenceTimeout, QueueFull

# Two full batches: one computing, one waiting at Triton to be batched the moment it ends. More
# would only move the queue to where priorities do not count.
RUNNING = 64
WAITING = 1000


class Gate:
    """Admits the requests of one model. All calls on one event loop."""

    def __init__(self, model_id: str, *, running: int = RUNNING, waiting: int = WAITING) -> None:
        self._model_id = model_id
        self._free = running
        self._limit = waiting
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._sequence = itertools.count()

    @property
    def waiting(self) -> int:
        """Requests that wait to be admitted."""
        return len(self._queue)

    def try_enter(self) -> bool:
        """Enter at once when there is room and nobody waits."""
        if self._free and not self._queue:
            self._free -= 1
            return True
        return False

    async def enter(self, priority: int, deadline: float) -> None:
        """Wait for a place; the caller must `leave` when this returned.

        Args:
            priority: 1 (critical) to 4 (low).
            deadline: on the event loop's clock.

        Raises:
            QueueFull: too many wait already.
            InferenceTimeout: the deadline came first.
        """
        if len(self._queue) >= self._limit:
            raise QueueFull(self._model_id, len(self._queue))
        loop = asyncio.get_running_loop()
        began = loop.time()
        place = (priority, next(self._sequence), loop.create_future())
        heapq.heappush(self._queue, place)
        admitted = place[2]
        try:
            await asyncio.wait({admitted}, timeout=max(0.0, deadline - began))
        except asyncio.CancelledError:
            self._give_up(place)
            raise
        if not admitted.done():
            self._give_up(place)
            raise InferenceTimeout(self._model_id, round(loop.time() - began, 3))

    def leave(self) -> None:
        """End a request; the next in line takes its place."""
        if self._queue:
            heapq.heappop(self._queue)[2].set_result(None)  # its place passes on
        else:
            self._free += 1

    def _give_up(self, place: tuple[int, int, asyncio.Future[None]]) -> None:
        if place[2].done():
            self.leave()  # admitted in the very moment its owner gave up
        else:
            self._queue.remove(place)
            heapq.heapify(self._queue)
