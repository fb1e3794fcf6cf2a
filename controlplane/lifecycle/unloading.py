"""Unloading a version until its memory is back, whatever its process or Triton are up to."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import ServiceUnavailable
from controlplane.lifecycle import memory
from controlplane.triton.failures import StubUnhealthy, TritonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.registry.repository import ModelRepository
    from controlplane.triton.client import TritonClient
    from controlplane.triton.server import TritonServer

log = structlog.get_logger(__name__)

Key = tuple[str, int]  # Triton name and version

# Triton says "unloaded" before the stub process has ended (triton-facts: about 1 s). One that takes
# longer than this hangs, or computes an answer that nobody waits for any more, and is killed.
PROCESS_END_TIMEOUT = 15.0
KILLED_TIMEOUT = 5.0
# Triton keeps a model while a request of it is under way. One whose process has done nothing for so
# long waits for a request that Triton has lost (seen in 2.51 after cancelled streams); requests
# that we know of have ended, or had their time, before.
IDLE_LIMIT = 5.0
IDLE_SHARE = 0.05  # of a processor, which a process takes that does nothing
# How often it is looked whether the process of a model that Triton keeps unloading is still there.
LOOK_EVERY = 0.25
LOOKS_WITHOUT_PROCESS = 2  # Triton itself tells a moment after the process has ended


class Unloading:
    """Unloads from one Triton server; the caller sees to it that a model's calls do not overlap."""

    def __init__(
        self, client: TritonClient, server: TritonServer, repository: ModelRepository
    ) -> None:
        self._client = client
        self._server = server
        self._repository = repository
        # Versions that were seen to have processes of their own; others run inside the server.
        self._with_process: set[Key] = set()

    def note_process(self, key: Key) -> None:
        """A load has gone well: see whether the version has a process, while it surely lives."""
        if self._server.stub_pids(*key):
            self._with_process.add(key)

    def check_process(self, key: Key) -> None:
        """Check that the process that `note_process` saw is still there.

        Raises:
            StubUnhealthy: it is gone.
        """
        if key in self._with_process and not self._server.stub_pids(*key):
            raise StubUnhealthy("its process died right after its test inference")

    async def unload(self, name: str, number: int, timeout: float) -> None:
        """Return when Triton has unloaded the version, or never will, and its memory is back.

        Raises:
            ServiceUnavailable: Triton did not unload it in time, or is gone.
        """
        key = (name, number)
        if pids := self._server.stub_pids(*key):
            self._with_process.add(key)
        asking = asyncio.ensure_future(self._ask(name, number, timeout))
        try:
            if await self._answers(asking, key, timeout):
                await asking
                await self._wait_until_ended(key, pids)
        except (TritonError, OSError, ValueError) as error:
            raise ServiceUnavailable(f"Triton did not unload {name}: {error}") from error
        finally:
            asking.cancel()
        self._with_process.discard(key)

    async def _ask(self, name: str, number: int, timeout: float) -> None:
        if rest := sorted(await self._client.ready_versions(name) - {number}):
            config = self._repository.load_config(name, *rest)
            await self._client.unload_version(name, number, config, timeout=timeout)
        else:
            await self._client.unload(name, timeout=timeout)

    async def _answers(self, asking: asyncio.Future[None], key: Key, timeout: float) -> bool:
        """True when Triton has answered; False when it never will, but the memory is back.

        A request that failed because the model's process died is never given back inside Triton
        (seen in 2.51): the model stays UNLOADING for ever. That is no obstacle to loading it
        again, and with its process its memory has gone.
        """
        killing_time, absent = time.monotonic() + timeout - 1.0, 0
        idleness = _Idleness(lambda: memory.processor_seconds(self._server.stub_pids(*key)))
        while not (await asyncio.wait({asking}, timeout=LOOK_EVERY))[0]:
            if key not in self._with_process:
                continue  # it runs inside the server: only Triton's answer tells
            idle = idleness.seconds() >= IDLE_LIMIT
            if (idle or time.monotonic() >= killing_time) and self._server.kill_stubs(*key):
                log.warning("a model that does not unload is killed", model=key[0], idle=idle)
            absent = 0 if self._server.stub_pids(*key) else absent + 1
            if absent == LOOKS_WITHOUT_PROCESS:
                log.info("Triton keeps unloading a model whose process is gone", model=key[0])
                return False
        return True

    async def _wait_until_ended(self, key: Key, pids: list[int]) -> None:
        if await _ended(pids, PROCESS_END_TIMEOUT):
            return
        log.warning("a model's process outlives its unload and is killed", model=key[0], pids=pids)
        self._server.kill_stubs(*key)
        if not await _ended(pids, KILLED_TIMEOUT):
            raise ServiceUnavailable(f"A process of {key[0]} does not end: {pids}")


class _Idleness:
    """For how long processes have done nothing, by the processor time that they have used.

    A process that hangs uses none; one that computes does, also for a GPU.
    """

    def __init__(self, used: Callable[[], float]) -> None:
        self._used = used
        self._since, self._before = time.monotonic(), used()

    def seconds(self) -> float:
        """Since they last did something."""
        now, used = time.monotonic(), self._used()
        if used - self._before > IDLE_SHARE * (now - self._since):
            self._since, self._before = now, used
        return now - self._since


async def _ended(pids: list[int], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while any(memory.alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
