"""Watches a running server until it has ended, and ends one that hangs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from controlplane.triton.client import TritonClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.triton.server import Endpoints
    from controlplane.triton.server_process import ServerProcess

_log = structlog.get_logger(__name__)


async def watch_until_dead(
    process: ServerProcess,
    endpoints: Endpoints,
    *,
    hang_timeout: float,
    stop_timeout: float,
    on_told: Callable[[], None],
) -> int:
    """Return the exit code when the process has ended.

    Args:
        hang_timeout: seconds without any sign of life after which it is killed.
        stop_timeout: seconds for its end once somebody has told it to stop.
        on_told: called when somebody has; it goes on with what runs, and takes nothing new.
    """
    ended = asyncio.ensure_future(process.wait())
    told = asyncio.ensure_future(process.told_to_stop())
    hangs = asyncio.ensure_future(_kill_when_it_hangs(process, endpoints, hang_timeout))
    try:
        await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            _log.warning("somebody has told Triton to stop", pid=process.pid)
            on_told()
            if not (await asyncio.wait({ended}, timeout=stop_timeout))[0]:
                process.kill()
        return await ended
    finally:
        for task in (ended, told, hangs):
            task.cancel()
        await asyncio.gather(ended, told, hangs, return_exceptions=True)


async def _kill_when_it_hangs(
    process: ServerProcess, endpoints: Endpoints, hang_timeout: float
) -> None:
    """Ask for a sign of life again and again, until there has been none for too long."""
    loop = asyncio.get_running_loop()
    client = TritonClient(endpoints)
    last_seen = loop.time()
    try:
        while loop.time() - last_seen < hang_timeout:
            await asyncio.sleep(hang_timeout / 6)
            if await client.live(timeout=hang_timeout / 6):
                last_seen = loop.time()
        _log.error("Triton hangs and is killed", pid=process.pid)
        process.kill()
    finally:
        await client.close()
