"""What the scheduler's decisions do to Triton: load, unload, probe, measure."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from controlplane.errors import (
    LoadFailed,
    LoadInterrupted,
    LoadTimeout,
    ModelMoraError,
    ServiceUnavailable,
)
from controlplane.lifecycle import health, memory, ready_probe
from controlplane.lifecycle.elsewhere import Probes
from controlplane.lifecycle.growth import ServerGrowth
from controlplane.lifecycle.unloading import Key, Unloading
from controlplane.registry import plugins
from controlplane.triton.failures import (
    StubUnhealthy,
    TritonError,
    TritonTimeout,
    TritonUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controlplane.lifecycle.gpu import GpuMemory
    from controlplane.lifecycle.memory import MemoryUsage
    from controlplane.registry.model import Servable
    from controlplane.registry.repository import ModelRepository
    from controlplane.triton.client import TritonClient
    from controlplane.triton.server import TritonServer

log = structlog.get_logger(__name__)

STRAY_TIMEOUT = 60.0
# Part of one processor that a process must have used meanwhile to count as computing.
COMPUTING_SHARE = 0.05


class NoAnswer(TritonError):
    """A test inference got no answer: the model hangs, or is busy."""


# During a load it is looked this often whether the model's process lives. Triton itself notices a
# death within a second or two, or never.
LOOK_EVERY = 0.2
LOOKS_WITHOUT_PROCESS = 25
# So many loads Triton does at a time on the smallest machine; others wait without a process.
TRITON_LOADS = 4


class Loaded(msgspec.Struct, frozen=True):
    """Outcome of a load; memory is None where it cannot be seen."""

    memory_mb: float | None
    process_id: int | None
    seconds: float
    response_time_ms: float
    gpu_mb: float | None = None


class TritonEffects:
    """Acts on one Triton server. Every call is bounded in time.

    Two versions of a model may be in memory, during a switch. Triton knows one configuration per
    model, so each call says which versions are to be there afterwards; one such call at a time.

    Attributes:
        probes: counts the test inferences.
    """

    def __init__(
        self,
        client: TritonClient,
        server: TritonServer,
        repository: ModelRepository,
        *,
        gpus: GpuMemory | None = None,
        on_load: Callable[[Servable, MemoryUsage], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            gpus: where memory on GPUs is asked for; None where there are none.
            on_load: told what each load was measured to take.
        """
        self._client = client
        self._loads = 0  # calls to load under way
        self._server = server
        self._repository = repository
        self._gpus = gpus
        self._on_load = on_load
        self._growth = ServerGrowth(server, gpus)
        self.probes = Probes()
        self._unloading = Unloading(client, server, repository)
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
            LoadInterrupted: the model's process died meanwhile.
            ServiceUnavailable: the server is gone.
        """
        async with self._turns[servable.triton_name]:
            return await self._load(servable, timeout)

    async def _load(self, servable: Servable, timeout: float) -> Loaded:
        started = time.monotonic()
        name, number = servable.key
        try:
            before = await self._growth.begin()
            beside = await self._client.ready_versions(name) - {number}
            config = self._repository.load_config(name, number, *sorted(beside))
            await self._call_load(servable, config, timeout)
            self._unloading.note_process(servable.key)
            response_time_ms = await self.probe(servable)
            self._unloading.check_process(servable.key)
        except TritonTimeout as error:
            # A stub that cannot start leaves Triton's load hanging for ever (server#6536).
            self._server.kill_stubs(name, number)
            await self._clean_up(servable)
            raise LoadTimeout(servable.model_id, timeout) from error
        except TritonUnavailable as error:
            raise ServiceUnavailable(f"Triton is not reachable: {error}") from error
        except StubUnhealthy as error:
            await self._clean_up(servable)
            raise LoadInterrupted(servable.model_id, str(error)) from error
        except (TritonError, OSError, ModelMoraError) as error:
            await self._clean_up(servable)
            reason = await self._missing(servable) or _reason(error)
            raise LoadFailed(servable.model_id, reason) from error
        finally:
            self._growth.end()
        usage = await self.measure(servable) or await self._growth.since(before)
        if usage is not None:
            self._on_load(servable, usage)
        return Loaded(
            memory_mb=usage.used_mb if usage else None,
            gpu_mb=usage.gpu_mb if usage else None,
            process_id=self.process_of(servable),
            seconds=time.monotonic() - started,
            response_time_ms=response_time_ms,
        )

    async def _missing(self, servable: Servable) -> str | None:
        """A backend that is not installed here any more, which explains why a load failed."""
        if self._server.pid is None:  # another machine's environment
            return None
        with contextlib.suppress(OSError, ValueError):
            manifest = self._repository.manifest(*servable.key)
            return await asyncio.to_thread(plugins.missing_backend, manifest)
        return None

    async def _call_load(self, servable: Servable, config: str, timeout: float) -> None:
        """Have Triton load it, but do not wait for what will never come.

        Seen on 2.51: when a model's process is killed at an unlucky moment of its start, the call
        does not return, and only a fresh server can load that model again.
        """
        name = servable.triton_name
        loading = asyncio.ensure_future(self._client.load(name, config, timeout=timeout))
        seen, looks_without = False, 0
        self._loads += 1
        try:
            while not loading.done():
                await asyncio.wait({loading}, timeout=LOOK_EVERY)
                alive = bool(self._server.stub_pids(*servable.key))
                seen = seen or alive
                looks_without = 0 if alive else looks_without + 1
                limit = LOOKS_WITHOUT_PROCESS * (1 if seen else 2)
                expected = seen or self._process_is_due(config)
                if expected and looks_without >= limit and not loading.done():
                    log.error("Triton hangs in the load of a dead process", model=name)
                    self._server.kill()
                    raise TritonUnavailable(f"it did not notice that the process of {name} died")
            loading.result()
        finally:
            self._loads -= 1
            loading.cancel()

    def _process_is_due(self, config: str) -> bool:
        """True when a load must have started its process by now."""
        ours = self._server.pid is not None
        return ours and self._loads < TRITON_LOADS and "EXECUTION_ENV_PATH" not in config

    async def unload(self, servable: Servable, timeout: float) -> None:
        """Unload and wait until the model's processes have ended and their memory is back.

        Raises:
            ServiceUnavailable: Triton did not unload it in time or is gone.
        """
        async with self._turns[servable.triton_name]:
            await self._unload(*servable.key, timeout)

    async def _unload(self, name: str, number: int, timeout: float) -> None:
        self._growth.disturb()
        await self._unloading.unload(name, number, timeout)

    async def unload_stray(self, name: str, number: int, is_stray: Callable[[], bool]) -> bool:
        """Unload a version that somebody else has loaded; False when it is wanted by now.

        Args:
            is_stray: asked when no other load or unload of the model runs.

        Raises:
            ServiceUnavailable: as `unload`.
        """
        async with self._turns[name]:
            if not is_stray():
                return False
            await self._unload(name, number, STRAY_TIMEOUT)
            return True

    async def probe(self, servable: Servable) -> float:
        """One test inference; returns its time in milliseconds.

        Raises:
            NoAnswer: there was none in time.
            TritonError: the inference failed.
            LoadFailed: it was answered, but not as the model's manifest says.
        """
        manifest = self._repository.manifest(*servable.key)
        if ready_probe.is_ready_made(manifest):
            return await self._probe_ready_made(servable, manifest)
        expected = [tensor["name"] for tensor in manifest["outputs"]]
        started = time.perf_counter()
        try:
            self.probes.begin(servable.key)
            outputs = await self._test_inference(servable, manifest, expected)
        except TritonTimeout as error:
            raise NoAnswer(
                f"no answer to a test inference within {health.PROBE_TIMEOUT:g} s"
            ) from error
        finally:
            self.probes.end(servable.key)
        fault = health.probe_fault(outputs, expected)
        if fault is not None:
            raise LoadFailed(servable.model_id, fault)
        return (time.perf_counter() - started) * 1000

    async def _test_inference(
        self, servable: Servable, manifest: Mapping[str, Any], expected: list[str]
    ) -> dict[str, Any]:
        """The outputs of one request; of a decoupled model, the last that each response had."""
        inputs, timeout = health.probe_inputs(manifest), health.PROBE_TIMEOUT
        parameters = health.probe_parameters(manifest)
        if not manifest.get("decoupled"):
            return await self._client.infer(
                *servable.key, inputs, expected, timeout=timeout, parameters=parameters
            )
        outputs: dict[str, Any] = {}
        responses = self._client.stream(
            *servable.key, inputs, timeout=timeout, parameters=parameters
        )
        async for response in responses:
            outputs |= response
        return outputs

    async def _probe_ready_made(self, servable: Servable, manifest: Mapping[str, Any]) -> float:
        self.probes.begin(servable.key)
        try:
            return await ready_probe.probe(self._client, *servable.key, manifest)
        except TritonTimeout as error:
            raise NoAnswer(error.message) from error
        finally:
            self.probes.end(servable.key)

    async def measure(self, servable: Servable) -> MemoryUsage | None:
        """Memory of the model's processes; None where they cannot be seen, or are none."""
        pids = self._server.stub_pids(*servable.key)
        if not pids:
            return None
        roots = {servable.key: pids}
        return (await asyncio.to_thread(memory.usage_of, roots, self._gpus)).get(servable.key)

    async def measure_all(self) -> dict[Key, MemoryUsage]:
        """Memory of all models that have processes of their own, by Triton name and version."""
        return await asyncio.to_thread(lambda: memory.usage_of(self._server.stubs(), self._gpus))

    def is_computing(self, servable: Servable) -> Callable[[], bool]:
        """Begin to watch a model's processes; the answer tells whether they have worked since.

        A process that hangs uses no processor time; one that computes does, also for a GPU.
        """
        pids = self._server.stub_pids(*servable.key)
        began, before = time.monotonic(), memory.processor_seconds(pids)

        def computing() -> bool:
            share = (memory.processor_seconds(pids) - before) / (time.monotonic() - began)
            return share > COMPUTING_SHARE

        return computing

    def kill_processes(self, servable: Servable) -> int:
        """Kill the model's processes, which ends the requests in them; says how many."""
        return self._server.kill_stubs(*servable.key)

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
            await self._unload(*servable.key, timeout=30.0)
        except ModelMoraError as error:
            log.warning(
                "a failed load could not be cleaned up",
                model_id=servable.model_id,
                reason=str(error),
            )


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, ModelMoraError) else str(error)
