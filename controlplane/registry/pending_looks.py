"""Looks at archives under way: they outlast the requests that ask for them.

An archive may take minutes to come, and no request should be held so long: proxies and clients give
up. So who registers waits for a moment, is told how far it is, and asks again; whoever asks for the
same meanwhile waits for the same download. What nobody asks for any more ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.errors import SourceBeingRead
from controlplane.registry.files import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from typing import Any

    from controlplane.registry.looking import Look

KEEP_SECONDS = 60.0


class _Pending:
    """A look, and who waits for it."""

    def __init__(self, begin: Callable[[_Pending], Coroutine[Any, Any, Look]]) -> None:
        self.progress = Progress(phase="downloading", step="wait", message="waiting for its turn")
        self.task = asyncio.get_running_loop().create_task(begin(self))
        self.waiting = 0
        self.expiry: asyncio.TimerHandle | None = None

    def keep(self, expiry: asyncio.TimerHandle | None) -> None:
        """Until then, in place of what was said before."""
        if self.expiry is not None:
            self.expiry.cancel()
        self.expiry = expiry

    async def give_up(self) -> None:
        """End it; nothing is left but what the cache keeps of it."""
        self.keep(None)
        self.task.cancel()
        await asyncio.wait({self.task})
        if not self.task.cancelled() and self.task.exception() is None:
            self.task.result().discard()


class PendingLooks:
    """All of them, by what they look at. Used on one event loop."""

    def __init__(self, *, keep_seconds: float = KEEP_SECONDS) -> None:
        """`keep_seconds`: how long a look goes on, or its outcome stays, without anybody asking."""
        self._keep_seconds = keep_seconds
        self._pending: dict[Hashable, _Pending] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether there is none, nor one that ends."""
        return not self._pending and not self._ending

    async def outcome(
        self,
        key: Hashable,
        model_id: str,
        begin: Callable[[Callable[[Progress], None]], Coroutine[Any, Any, Look]],
        patience: float | None,
    ) -> Look:
        """Wait for the look at `key`, which begins unless it is under way.

        Args:
            begin: does it, telling its progress from any thread.
            patience: seconds; None waits to its end.

        Raises:
            SourceBeingRead: it goes on; ask again.
            whatever `begin` raises.
        """
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(lambda mine: begin(_teller(mine)))
        pending.keep(None)
        pending.waiting += 1
        try:
            done, _ = await asyncio.wait({pending.task}, timeout=patience)
        finally:
            pending.waiting -= 1
            if not pending.waiting and self._pending.get(key) is pending:
                loop = asyncio.get_running_loop()
                pending.keep(loop.call_later(self._keep_seconds, self._expire, key))
        if not done:
            raise SourceBeingRead(model_id, pending.progress.message, pending.progress.fraction)
        pending.keep(None)
        if self._pending.get(key) is pending:  # the first of those who waited
            del self._pending[key]
        return pending.task.result()

    async def close(self) -> None:
        """End all."""
        for key in list(self._pending):
            self._expire(key)
        if self._ending:
            await asyncio.wait(self._ending)

    def _expire(self, key: Hashable) -> None:
        ending = asyncio.get_running_loop().create_task(self._pending.pop(key).give_up())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


def _teller(pending: _Pending) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        pending.progress = progress

    return tell
