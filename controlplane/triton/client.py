"""Calls to a Triton server over gRPC. Nothing outside of this package imports tritonclient.

Model control goes over gRPC: a load over HTTP blocks one of Triton's few frontend threads
(server#8737).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import msgspec
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, service_pb2
from tritonclient.grpc import aio as triton_grpc
from tritonclient.utils import InferenceServerException

from controlplane.triton import large_requests
from controlplane.triton.failures import (
    ModelFailed,
    ModelUnknown,
    TritonError,
    TritonTimeout,
    TritonUnavailable,
    failure_of,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )

    from controlplane.triton.server import Endpoints

__all__ = [
    "IndexEntry",
    "ModelFailed",
    "ModelUnknown",
    "TritonClient",
    "TritonError",
    "TritonTimeout",
    "TritonUnavailable",
]

Array = npt.NDArray[Any]
T = TypeVar("T")

# How long control calls other than load and unload may take, seconds.
CONTROL_TIMEOUT = 10.0
_POLL = 0.02
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # No keepalive pings: a server that computes for minutes would count them as misbehaviour.
    ("grpc.keepalive_time_ms", 2**31 - 1),
    # The default waits up to two minutes before it looks whether a restarted server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Without this, all channels to one address share one connection, and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
]


class IndexEntry(msgspec.Struct, frozen=True):
    """One line of the repository index.

    Attributes:
        version: None for a model that was never loaded.
        state: READY, LOADING, UNLOADING, UNAVAILABLE, or "" for one that was never loaded.
        reason: why it is unavailable ("unloaded", or the text of the failure).
    """

    name: str
    version: int | None
    state: str
    reason: str


class TritonClient:
    """One gRPC channel to one Triton server; to be created where an event loop runs.

    All calls raise TritonUnavailable when the server cannot be reached and TritonTimeout when
    the time given (seconds) is over.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self._retired: set[asyncio.Task[None]] = set()
        self._generation = 0  # grows whenever the channel is replaced or closed
        self._use(endpoints)

    def _use(self, endpoints: Endpoints) -> None:
        self._headers = dict(endpoints.grpc_metadata)
        self._grpc = triton_grpc.InferenceServerClient(
            endpoints.grpc_url, channel_args=_CHANNEL_OPTIONS
        )

    def reconnect(self, endpoints: Endpoints) -> None:
        """Talk to a server that was restarted, perhaps on other ports; running calls fail."""
        self._generation += 1
        task = asyncio.ensure_future(self._grpc.close())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)
        self._use(endpoints)

    async def close(self) -> None:
        """Close the channel; running calls fail."""
        self._generation += 1
        await asyncio.gather(*self._retired, self._grpc.close())

    async def live(self, timeout: float = 2.0) -> bool:
        """Whether the server answers; never raises."""
        return await self._is(self._grpc.is_server_live, timeout)

    async def ready(self, timeout: float = 2.0) -> bool:
        """Whether the server takes requests; says nothing about models. Never raises."""
        return await self._is(self._grpc.is_server_ready, timeout)

    async def _is(self, question: Callable[..., Awaitable[bool]], timeout: float) -> bool:
        try:
            return bool(await self._guard(question(client_timeout=timeout), timeout))
        except TritonError:
            return False

    async def index(self) -> list[IndexEntry]:
        """All models of the repository, loaded or not, with the state of each version."""
        call = self._grpc.get_model_repository_index(
            headers=self._headers, client_timeout=CONTROL_TIMEOUT
        )
        answer = await self._guard(call, CONTROL_TIMEOUT)
        return [
            IndexEntry(
                entry.name, int(entry.version) if entry.version else None, entry.state, entry.reason
            )
            for entry in answer.models
            if not entry.name.startswith(".")  # our staging folder: Triton lists every folder
        ]

    async def load(
        self,
        name: str,
        config_json: str | None = None,
        *,
        timeout: float,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Load a model and return when it is ready.

        One load at a time per model: two at once load it twice (server#7018). Unload before
        loading again: a load of a loaded model leaks, or does nothing (server#4528, #5983).

        Args:
            config_json: the model configuration to use instead of the folder's config.pbtxt.
            timeout: seconds; Triton goes on loading after that, see `TritonServer.kill_stubs`.
            files: the whole content of the model's folder by path within it; the repository is not
                looked at, and the index does not show such a model.

        Raises:
            ModelUnknown: no such folder in the repository.
            ModelFailed: with Triton's text, which holds the model's own exception.
            TritonTimeout: with the state that the index shows.
        """
        call = self._grpc.load_model(
            name,
            headers=self._headers,
            config=config_json,
            files=files and {f"file:{path}": content for path, content in files.items()},
            client_timeout=timeout,
        )
        try:
            await self._guard(call, timeout)
        except TritonTimeout:
            await self._judge_late_load(name, timeout)

    async def _judge_late_load(self, name: str, timeout: float) -> None:
        # The call's time is over, the load's is not (server#4583, #6711): the index knows.
        entries = [entry for entry in await self.index() if entry.name == name and entry.state]
        if any(entry.state == "LOADING" for entry in entries) or not entries:
            state = entries[0].state if entries else "not in the repository index"
            raise TritonTimeout(f"{name} was not loaded within {timeout:g} s (state: {state})")
        for entry in entries:
            if entry.state == "READY":
                return
        raise ModelFailed(f"{name} was not loaded: {entries[0].reason or entries[0].state}")

    async def unload(self, name: str, *, timeout: float) -> None:
        """Unload all versions of a model; return when the index says that they are gone.

        A request that runs is finished first and its process ends about a second later, so the
        memory comes back later than this returns (server#4844). Unloading an unknown or unloaded
        model is no error.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        call = self._grpc.unload_model(name, headers=self._headers, client_timeout=timeout)
        try:
            await self._guard(call, timeout)
        except ModelUnknown:
            return
        while not await self._is_unloaded(name):
            if asyncio.get_running_loop().time() >= deadline:
                raise TritonTimeout(f"{name} was not unloaded within {timeout:g} s")
            await asyncio.sleep(_POLL)

    async def unload_version(
        self, name: str, version: int, rest_config_json: str, *, timeout: float
    ) -> None:
        """Unload one version of a model and leave others running; return when the index agrees.

        Triton has no call for it: a load whose version policy no longer names the version unloads
        it. Versions that run go on untouched while nothing but the policy changes.

        Args:
            rest_config_json: the configuration that serves only the other versions.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        await self.load(name, rest_config_json, timeout=timeout)
        while not await self._is_unloaded(name, version):
            if asyncio.get_running_loop().time() >= deadline:
                raise TritonTimeout(f"{name} {version} was not unloaded within {timeout:g} s")
            await asyncio.sleep(_POLL)

    async def ready_versions(self, name: str) -> set[int]:
        """Numbers of the versions of a model that are loaded."""
        return {
            entry.version
            for entry in await self.index()
            if entry.name == name and entry.state == "READY" and entry.version is not None
        }

    async def _is_unloaded(self, name: str, version: int | None = None) -> bool:
        return all(
            entry.state in ("UNAVAILABLE", "")
            for entry in await self.index()
            if entry.name == name and version in (None, entry.version)
        )

    async def infer(
        self,
        name: str,
        version: int,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        timeout: float,
        priority: int = 0,
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        sequence_id: int = 0,
    ) -> dict[str, Array]:
        """Run one request (KServe v2 ModelInfer).

        Args:
            inputs: arrays with the batch dimension; BYTES as object arrays of bytes.
            outputs: the outputs wanted, by name.
            timeout: seconds, for waiting in the queue and computing together.
            priority: Triton's level, 1 is first; 0 takes the model's default.
            parameters: the model's own, str, bool, int or float.
            sequence_id: the request is a whole sequence of that number; 0 is for none.

        Raises:
            ModelUnknown: that version is not loaded.
            RequestRejected: shapes, types or names do not fit the model.
            ModelFailed: the model raised, or its process is dead.
        """
        terms = {
            "outputs": [InferRequestedOutput(output) for output in outputs],
            "request_id": request_id,
            "priority": priority,
            "timeout": max(1, int(timeout * 1_000_000)),
            "parameters": dict(parameters) if parameters else None,
            "sequence_id": sequence_id,
            "sequence_start": sequence_id > 0,
            "sequence_end": sequence_id > 0,
        }
        if large_requests.is_large(inputs):
            call = self._infer_large(name, str(version), inputs, terms, timeout)
        else:
            tensors = [_tensor(key, array) for key, array in inputs.items()]
            call = self._grpc.infer(name, tensors, str(version), client_timeout=timeout, **terms)
        result = await self._translated(call)
        return {output: _array(result, output) for output in outputs}

    async def _infer_large(
        self,
        name: str,
        version: str,
        inputs: Mapping[str, Array],
        terms: Mapping[str, Any],
        timeout: float,
    ) -> InferResult:
        deadline = asyncio.get_running_loop().time() + timeout
        channel = self._grpc._channel  # the library sends nothing that is encoded already
        message = await asyncio.to_thread(large_requests.encoded, name, version, inputs, terms)
        call = channel.unary_unary(
            large_requests.METHOD,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            return InferResult(await call(message, timeout=left))
        except grpc.aio.AioRpcError as error:
            raise failure_of(str(error.code()), error.details()) from None

    async def first_response(
        self, name: str, version: int, inputs: Mapping[str, Array], *, timeout: float
    ) -> None:
        """Send one request to a decoupled model and wait for its first response, or its end.

        Further responses are not waited for: Triton is told to cancel the request.

        Args:
            timeout: seconds.

        Raises:
            As `infer`.
        """
        async with contextlib.aclosing(
            self.stream(name, version, inputs, timeout=timeout)
        ) as responses:
            async for _ in responses:
                return

    async def stream(
        self,
        name: str,
        version: int,
        inputs: Mapping[str, Array],
        *,
        timeout: float,
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[dict[str, Array], None]:
        """Run one request on a decoupled model: its responses' outputs by name, as they come.

        It ends with the request's last response (KServe v2 ModelStreamInfer; nothing else is sent
        on the stream). A consumer that stops early must close the generator (`aclosing`): Triton
        is then told to cancel the request.

        Args:
            timeout: seconds, for all responses together.
            parameters: the model's own, str, bool, int or float.

        Raises:
            As `infer`.
        """

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {
                "model_name": name,
                "model_version": str(version),
                "inputs": [_tensor(key, array) for key, array in inputs.items()],
                "request_id": request_id,
                "parameters": dict(parameters) if parameters else None,
            }

        # Errors carry a text only. `triton_grpc_error` would give them codes, and kills Triton:
        # it takes the stream's end for a cancellation (segmentation fault, once in some dozens).
        stream = self._grpc.stream_infer(requests(), stream_timeout=timeout)
        try:
            while True:
                result, error = await self._translated(anext(stream))
                if error is not None:
                    raise failure_of(error.status(), error.message())
                names = [output.name for output in result.get_response().outputs]
                if names:  # the last response of some models carries nothing but that it is
                    yield {output: _array(result, output) for output in names}
        except StopAsyncIteration:
            return
        except grpc.aio.AioRpcError as error:  # this call of the library lets it through
            raise failure_of(str(error.code()), error.details()) from None
        finally:
            stream.cancel()

    async def model_ready(self, name: str, version: int, *, timeout: float) -> bool:
        """Whether Triton calls a version ready; it does so of a model whose process is dead too."""
        call = self._grpc.is_model_ready(name, str(version), client_timeout=timeout)
        return bool(await self._guard(call, timeout))

    async def statistics(self, name: str, version: int) -> dict[str, Any]:
        """Triton's statistics of one loaded version (`ModelStatistics`, snake_case keys).

        64-bit numbers are strings, as protobuf's JSON form has them.
        """
        call = self._grpc.get_inference_statistics(
            name, str(version), as_json=True, client_timeout=CONTROL_TIMEOUT
        )
        answer = await self._guard(call, CONTROL_TIMEOUT)
        stats = answer.get("model_stats", [])
        if not stats:
            raise ModelUnknown(f"Triton has no statistics of {name} version {version}")
        return dict(stats[0])

    async def all_statistics(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Triton's statistics of all loaded models, by name and version; as `statistics`."""
        call = self._grpc.get_inference_statistics(as_json=True, client_timeout=CONTROL_TIMEOUT)
        answer = await self._guard(call, CONTROL_TIMEOUT)
        found = answer.get("model_stats", [])
        return {(stats["name"], int(stats["version"])): dict(stats) for stats in found}

    async def _guard(self, call: Awaitable[T], timeout: float) -> T:
        # gRPC keeps the deadline itself; a second one costs a task, which a request that may take
        # a millisecond should not pay for, but a control call can.
        try:
            return await asyncio.wait_for(self._translated(call), timeout + 1.0)
        except (asyncio.TimeoutError, TimeoutError):
            raise TritonTimeout(f"no answer within {timeout:g} s") from None

    async def _translated(self, call: Awaitable[T]) -> T:
        generation = self._generation
        try:
            return await call
        except InferenceServerException as error:
            raise failure_of(error.status(), error.message()) from None
        except grpc.aio.UsageError as error:  # the channel was closed before the call
            raise TritonUnavailable(str(error)) from None
        except asyncio.CancelledError:
            # A channel that is closed cancels its calls; to the caller that would look as if
            # somebody had cancelled the caller.
            if generation == self._generation:
                raise
            raise TritonUnavailable("the connection to Triton was closed") from None

    async def metadata(self) -> dict[str, Any]:
        """The server's name, version and extensions."""
        call = self._grpc.get_server_metadata(as_json=True, client_timeout=CONTROL_TIMEOUT)
        return dict(await self._guard(call, CONTROL_TIMEOUT))


def _tensor(name: str, array: Array) -> InferInput:
    tensor = InferInput(name, list(array.shape), large_requests.datatype(array))
    tensor.set_data_from_numpy(array)
    return tensor


def _array(result: Any, name: str) -> Array:
    array = result.as_numpy(name)
    if array is None:
        raise ModelFailed(f"the answer has no output {name!r}")
    return np.asarray(array)
