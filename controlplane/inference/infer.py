"""Synchronous inference for REST: check, lease, run on Triton, shape the answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from controlplane import events
from controlplane.errors import (
    InferenceFailed,
    InferenceTimeout,
    InvalidInput,
    ModelMoraError,
    ServiceUnavailable,
)
from controlplane.inference import tasks
from controlplane.inference.again import leased_once_more
from controlplane.lifecycle.memory import device
from controlplane.triton.failures import (
    ModelUnknown,
    RequestRejected,
    TritonError,
    TritonTimeout,
    TritonUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable
    from controlplane.registry.store import ModelStore
    from controlplane.triton.client import TritonClient

# Triton's max_batch_size of our models; longer lists travel as several requests, which the
# server is free to run beside other clients' requests.
CHUNK = 32
# Enough to keep the model busy; all at once would fill its queue ahead of everybody else.
CHUNKS_AT_A_TIME = 4


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it came in; `timeout_seconds` None means the service's default."""

    input_data: dict[str, Any]
    parameters: dict[str, Any] = {}
    priority: str = "medium"
    timeout_seconds: float | None = None


class InferMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds; `total` includes waiting for the model to be loaded."""

    inference_time_ms: float
    total_time_ms: float
    batch_size: int
    device: str


class InferResult(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    version: str
    output_data: dict[str, Any]
    metadata: InferMetadata


class InferenceService:
    """Runs requests of the REST API on Triton, through a lease."""

    def __init__(
        self,
        store: ModelStore,
        scheduler: Scheduler,
        client: TritonClient,
        bus: events.EventBus,
        *,
        request_timeout: float,
        suspect: Callable[[Servable], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._client = client
        self._bus = bus
        self._request_timeout = request_timeout
        self._suspect = suspect
        self._device = device()

    async def infer(self, name: str, version: str | None, request: InferRequest) -> InferResult:
        """Run one request.

        Args:
            name: the model, in any spelling.
            version: version string or Triton number; None for the current one.

        Raises:
            ModelNotFound, VersionNotFound, ModelNotReady: nothing to serve.
            ValidationFailed, BatchSizeExceeded, InvalidInput: the input is wrong.
            NoRestInference: a model with tensors of its own.
            InferenceTimeout, InferenceFailed, ServiceUnavailable: it could not be run.
            and what `Scheduler.lease` raises.
        """
        started = time.perf_counter()
        servable = self._store.servable(name, version)
        try:
            result = await self._run(servable, request, started)
        except ModelMoraError as error:
            self._finished(servable, started, error_code=error.code)
            raise
        except asyncio.CancelledError:  # the client has gone away
            self._finished(servable, started, error_code="CANCELLED")
            raise
        self._finished(servable, started, batch_size=result.metadata.batch_size)
        return result

    async def _run(self, servable: Servable, request: InferRequest, started: float) -> InferResult:
        tasks.check_served_over_rest(servable.model_id, servable.task_type)
        batch = tasks.parse_txt2embed(request.input_data, request.parameters)
        priority = tasks.priority_level(request.priority)
        timeout = tasks.check_timeout(request.timeout_seconds, self._request_timeout)
        deadline = asyncio.get_running_loop().time() + timeout
        vectors = np.empty((0, 0), np.float32)
        inference_seconds = 0.0
        ran = servable

        async def run(leased: Servable) -> None:
            nonlocal ran, vectors, inference_seconds
            ran, began = leased, time.perf_counter()
            vectors = await self._embed(leased, batch, priority, deadline, timeout)
            inference_seconds = time.perf_counter() - began

        if batch.texts:
            await leased_once_more(
                self._scheduler, servable, run, deadline=deadline, priority=priority
            )
        return InferResult(
            model_id=ran.model_id,
            version=ran.version,
            output_data=_embedding_output(vectors, single=batch.single),
            metadata=InferMetadata(
                inference_time_ms=round(inference_seconds * 1000, 3),
                total_time_ms=round((time.perf_counter() - started) * 1000, 3),
                batch_size=len(batch.texts),
                device=self._device,
            ),
        )

    async def _embed(
        self,
        servable: Servable,
        batch: tasks.TextBatch,
        priority: int,
        deadline: float,
        timeout: float,
    ) -> np.ndarray[Any, Any]:
        chunks = [batch.texts[i : i + CHUNK] for i in range(0, len(batch.texts), CHUNK)]
        turn = asyncio.Semaphore(CHUNKS_AT_A_TIME)

        async def run(chunk: tuple[str, ...]) -> np.ndarray[Any, Any]:
            async with turn:
                return await self._call(
                    servable, chunk, batch.parameters, priority, deadline, timeout
                )

        calls = [asyncio.ensure_future(run(chunk)) for chunk in chunks]
        try:
            return np.concatenate(await asyncio.gather(*calls))
        finally:
            for call in calls:  # the others of a failed request only burn processor time
                call.cancel()

    async def _call(
        self,
        servable: Servable,
        texts: tuple[str, ...],
        parameters: dict[str, Any],
        priority: int,
        deadline: float,
        timeout: float,
    ) -> np.ndarray[Any, Any]:
        encoded = np.array([[text.encode()] for text in texts], dtype=np.object_)
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise InferenceTimeout(servable.model_id, timeout)
        try:
            outputs = await self._client.infer(
                *servable.key,
                {"text_input": encoded},
                ["embedding"],
                timeout=left,
                priority=priority,
                parameters=parameters,
            )
        except TritonError as error:
            raise self._fact(servable, error, timeout) from error
        return outputs["embedding"]

    def _fact(self, servable: Servable, error: TritonError, timeout: float) -> ModelMoraError:
        if isinstance(error, TritonTimeout):
            return InferenceTimeout(servable.model_id, timeout)
        if isinstance(error, RequestRejected):
            return InvalidInput(str(error), field="input_data")
        if isinstance(error, TritonUnavailable):
            return ServiceUnavailable(f"Triton is not reachable: {error}")
        self._suspect(servable)
        if isinstance(error, ModelUnknown):
            return ServiceUnavailable(f"Triton no longer holds {servable.model_id}: {error}")
        return InferenceFailed(servable.model_id, str(error))

    def _finished(
        self,
        servable: Servable,
        started: float,
        *,
        batch_size: int | None = None,
        error_code: str | None = None,
    ) -> None:
        self._bus.publish(
            events.InferenceFinished(
                model_id=servable.model_id,
                task_type=servable.task_type.value,
                protocol="rest",
                status="error" if error_code else "success",
                duration_seconds=time.perf_counter() - started,
                batch_size=batch_size,
                error_code=error_code,
            )
        )


def _embedding_output(vectors: np.ndarray[Any, Any], *, single: bool) -> dict[str, Any]:
    """`embedding` for one text, `embeddings` for a list (domain C-21), and the dimension."""
    rows = vectors.tolist()
    key, value = ("embedding", rows[0]) if single else ("embeddings", rows)
    return {key: value, "dimension": int(vectors.shape[1])}
