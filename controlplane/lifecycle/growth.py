"""What a load adds to the memory of Triton itself: how backends that run inside it are measured."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.lifecycle import memory
from controlplane.lifecycle.memory import MemoryUsage

if TYPE_CHECKING:
    from controlplane.lifecycle.gpu import GpuMemory
    from controlplane.triton.server import TritonServer

Before = tuple[int, "MemoryUsage | None"]


class ServerGrowth:
    """What a load adds to the server's own process: the memory of a backend that runs inside it.

    While several loads or unloads go on nobody can say whose memory it is: then nothing is said.
    """

    def __init__(self, server: TritonServer, gpus: GpuMemory | None) -> None:
        self._server = server
        self._gpus = gpus
        self._running = 0
        self._changes = 0

    async def begin(self) -> Before:
        """What the server takes now, None where that cannot be told; `end` must follow."""
        self._running += 1
        self._changes += 1
        number = self._changes
        return number, await self._usage() if self._running == 1 else None

    def end(self) -> None:
        """The load that `begin` announced is over."""
        self._running -= 1

    def disturb(self) -> None:
        """Something else changes the server's memory: what `begin` saw tells nothing any more."""
        self._changes += 1

    async def since(self, before: Before) -> MemoryUsage | None:
        """How much more the server takes than at `begin`; None where that cannot be told."""
        number, usage = before
        now = await self._usage() if usage is not None and number == self._changes else None
        if usage is None or now is None or number != self._changes:
            return None
        on_gpu = None if now.gpu_mb is None else max(0.0, now.gpu_mb - (usage.gpu_mb or 0.0))
        return MemoryUsage(max(0.0, now.used_mb - usage.used_mb), on_gpu)

    async def _usage(self) -> MemoryUsage | None:
        """The server's process alone, without the stubs below it."""
        pid = self._server.pid
        if pid is None:
            return None
        return await asyncio.to_thread(memory.usage_of_process, pid, self._gpus)
