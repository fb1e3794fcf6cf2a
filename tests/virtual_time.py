"""An event loop on a clock of its own: when nothing is left to do, it is the next timer's time."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: where the loop would sleep, its clock moves on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None and len(self.get_map()) <= 1:  # the loop's own wake-up pipe
            raise RuntimeError("deadlock: nothing will ever happen any more")
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Hours pass in milliseconds, in the right order."""

    def __init__(self) -> None:
        self._virtual = _Jumping()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def turns(self, count: int) -> None:
        """Run what is ready, `count` times over, at this very moment."""

        async def some() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.run_until_complete(some())

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that happens meanwhile."""
        self.run_until_complete(asyncio.sleep(seconds))


def in_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` to its end on a loop of its own; whatever it leaves behind is cancelled."""
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        end_tasks(loop)
        loop.close()


def end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks of a loop and let them end."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(end())
