"""What the scheduler's decisions do to Triton: load, unload, probe, measure."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
import structlog

from controlplane.errors import LoadFailed, LoadTimeout, ModelMoraError, ServiceUnavailable
from controlplane.lifecycle import health, memory, ready_probe
from controlplane.triton.failures import TritonError, TritonTimeout, TritonUnavailable

if TYPE_CHECKING:
    from controlplane.registry.model import Servable
    from controlplane.registry.repository import ModelRepository
    from controlplane.triton.client import TritonClient
    from controlplane.triton.server import TritonServer

log = structlog.get_logger(__name__)

# Triton says "unloaded" before the stub process has ended (triton-facts: about 1 s).
PROCESS_END_TIMEOUT = 15.0


class Loaded(msgspec.Struct, frozen=True):
    """Outcome of a load. `memory_mb` is None where the processes cannot be seen."""

    memory_mb: float | None
    process_id: int | None
    seconds: float
    response_time_ms: float


class TritonEffects:
    """Acts on one Triton server. Every call is bounded in time.

    Two versions of a model may be in memory, during a switch. Triton knows one configuration per
    model, so each call says which versions are to be there afterwards; one such call at a time.
    """

    def __init__(
        self, client: TritonClient, server: TritonServer, repository: ModelRepository
    ) -> None:
        self._client = client
        self._server = server
        self._repository = repository
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def fit_together(self, one: Servable, other: Servable) -> bool:
        """True when both versions of a model can be in memory without disturbing each other."""
        try:
            return self._repository.fit_together(
                one.triton_name, one.triton_version, other.triton_version
            )
        except (OSError, ValueError):  # the load will say what is wrong with it
            return False

    async def load(self, servable: Servable, timeout: float) -> Loaded:
        """Load, prove by a test inference, measure.

        Returns when the model has answered. On failure nothing of it stays in memory. Another
        version of the model that is loaded goes on serving.

        Raises:
            LoadTimeout: not done after `timeout` seconds; the server may be stuck in the call.
            LoadFailed: Triton or the test inference refused, with the reason.
            ServiceUnavailable: the server is gone.
        """
        async with self._turns[servable.triton_name]:
            return await self._load(servable, timeout)

    async def _load(self, servable: Servable, timeout: float) -> Loaded:
        started = time.monotonic()
        name, number = servable.key
        try:
            beside = await self._client.ready_versions(name) - {number}
            config = self._repository.load_config(name, number, *sorted(beside))
            await self._client.load(name, config, timeout=timeout)
            response_time_ms = await self.probe(servable)
        except TritonTimeout as error:
            # A stub that cannot start leaves Triton's load hanging for ever (server#6536).
            self._server.kill_stubs(name, number)
            await self._clean_up(servable)
            raise LoadTimeout(servable.model_id, timeout) from error
        except TritonUnavailable as error:
            raise ServiceUnavailable(f"Triton is not reachable: {error}") from error
        except (TritonError, OSError, ModelMoraError) as error:
            await self._clean_up(servable)
            raise LoadFailed(servable.model_id, _reason(error)) from error
        return Loaded(
            memory_mb=await self.measure(servable),
            process_id=self.process_of(servable),
            seconds=time.monotonic() - started,
            response_time_ms=response_time_ms,
        )

    async def unload(self, servable: Servable, timeout: float) -> None:
        """Unload and wait until the model's processes have ended and their memory is back.

        Raises:
            ServiceUnavailable: Triton did not unload it in time or is gone.
        """
        async with self._turns[servable.triton_name]:
            await self._unload(servable, timeout)

    async def _unload(self, servable: Servable, timeout: float) -> None:
        name, number = servable.key
        pids = self._server.stub_pids(name, number)
        try:
            if rest := sorted(await self._client.ready_versions(name) - {number}):
                config = self._repository.load_config(name, *rest)
                await self._client.unload_version(name, number, config, timeout=timeout)
            else:
                await self._client.unload(name, timeout=timeout)
        except (TritonError, OSError, ValueError) as error:
            raise ServiceUnavailable(f"Triton did not unload {name}: {error}") from error
        await self._wait_until_ended(pids)

    async def probe(self, servable: Servable) -> float:
        """One test inference; returns its time in milliseconds.

        Raises:
            TritonError: the inference failed or timed out.
            LoadFailed: it was answered, but not as the model's manifest says.
        """
        manifest = self._repository.manifest(*servable.key)
        if ready_probe.is_ready_made(manifest):
            return await ready_probe.probe(self._client, *servable.key, manifest)
        expected = [tensor["name"] for tensor in manifest["outputs"]]
        started = time.perf_counter()
        try:
            outputs = await self._client.infer(
                *servable.key,
                health.probe_inputs(manifest),
                expected,
                timeout=health.PROBE_TIMEOUT,
            )
        except TritonTimeout as error:
            raise TritonError(
                f"no answer to a test inference within {health.PROBE_TIMEOUT:g} s"
            ) from error
        fault = health.probe_fault(outputs, expected)
        if fault is not None:
            raise LoadFailed(servable.model_id, fault)
        return (time.perf_counter() - started) * 1000

    async def measure(self, servable: Servable) -> float | None:
        """Memory of the model's processes in MB; None where they cannot be seen."""
        pids = self._server.stub_pids(*servable.key)
        return await asyncio.to_thread(memory.process_tree_mb, pids) if pids else None

    def process_of(self, servable: Servable) -> int | None:
        """The model's process; None where there is none to be seen."""
        return next(iter(self._server.stub_pids(*servable.key)), None)

    def process_lost(self, process_id: int | None) -> bool:
        """True when the model had a process of its own and it is gone."""
        return process_id is not None and not memory.alive(process_id)

    def kill_server(self) -> bool:
        """End a server that is beyond help; its callbacks tell when it is back.

        Returns False for an external server, which is not ours to end.
        """
        return self._server.kill()

    async def _clean_up(self, servable: Servable) -> None:
        try:
            await self._unload(servable, timeout=30.0)
        except ModelMoraError as error:
            log.warning(
                "a failed load could not be cleaned up",
                model_id=servable.model_id,
                reason=str(error),
            )

    async def _wait_until_ended(self, pids: list[int]) -> None:
        deadline = time.monotonic() + PROCESS_END_TIMEOUT
        while any(memory.alive(pid) for pid in pids):
            if time.monotonic() > deadline:
                log.warning("a model's process outlives its unload", pids=pids)
                return
            await asyncio.sleep(0.02)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, ModelMoraError) else str(error)
