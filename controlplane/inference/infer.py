"""Synchronous inference for REST: check, lease, run on Triton, shape the answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from controlplane import events
from controlplane.errors import InferenceFailed, ModelMoraError, ValidationFailed
from controlplane.inference.fetching import UrlInputs
from controlplane.inference.sending import Sender, Terms
from controlplane.inference.tasks.limits import check_timeout, priority_level
from controlplane.inference.tasks.media import MediaRules
from controlplane.inference.tasks.wording import usage, wording
from controlplane.lifecycle.memory import device

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

    from controlplane.inference.tasks.plan import Outputs, Plan
    from controlplane.inference.tasks.task import Event
    from controlplane.inference.tasks.wording import Wording
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings
    from controlplane.triton.client import TritonClient

# Input from so many characters on is checked in a thread: base64 takes a second per GB.
LARGE_INPUT = 256 * 1024


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it came in; `timeout_seconds` None means the service's default."""

    input_data: dict[str, Any]
    parameters: dict[str, Any] = {}
    priority: str = "medium"
    timeout_seconds: float | None = None


class InferMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds; `total` includes waiting for the model to be loaded.

    Attributes:
        batch_size: items of the call.
        usage: tokens that the model counted, over all items; None where it counts none.
    """

    inference_time_ms: float
    total_time_ms: float
    batch_size: int
    device: str
    usage: dict[str, int] | None = None


class InferResult(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    version: str
    output_data: dict[str, Any]
    metadata: InferMetadata


class _Run:
    """One call: its model, the caller's terms, what it took."""

    def __init__(self, servable: Servable, request: InferRequest) -> None:
        self.servable = servable
        self.request = request
        self.began = time.perf_counter()
        self.inference_seconds = 0.0
        self.batch_size: int | None = None

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Counts the time spent in it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.inference_seconds += time.perf_counter() - began


class _Ready(NamedTuple):
    """A call under a lease."""

    words: Wording
    plan: Plan
    sender: Sender


class InferenceService:
    """Runs requests of the REST API on Triton, through a lease."""

    def __init__(
        self,
        store: ModelStore,
        scheduler: Scheduler,
        client: TritonClient,
        bus: events.EventBus,
        *,
        settings: Settings,
        suspect: Callable[[Servable], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._client = client
        self._bus = bus
        self._request_timeout = settings.request_timeout
        self._url_inputs = UrlInputs(settings)
        self._rules = MediaRules(allow_urls=settings.allow_url_inputs)
        self._suspect = suspect
        self._device = device()

    def close(self) -> None:
        """Let go of threads."""
        self._url_inputs.close()

    async def infer(self, name: str, version: str | None, request: InferRequest) -> InferResult:
        """Run one request.

        Args:
            name: the model, in any spelling.
            version: version string or Triton number; None for the current one.

        Raises:
            ModelNotFound, VersionNotFound, ModelNotReady: nothing to serve.
            ValidationFailed, BatchSizeExceeded, InvalidInput: the input is wrong.
            NoRestInference: a model whose tensors JSON has no form for.
            InferenceTimeout, InferenceFailed, ServiceUnavailable: it could not be run.
            and what `Scheduler.lease` raises.
        """
        run = _Run(self._store.servable(name, version), request)
        with self._observed(run):
            async with self._ready(run) as ready:
                with run.computing():
                    responses = await ready.sender.all(ready.plan)
            return self._result(run, ready, responses)

    async def stream(
        self, name: str, version: str | None, request: InferRequest
    ) -> AsyncGenerator[Event | InferResult, None]:
        """Run one request and tell of it while it runs; the result comes last.

        Tasks that do not stream give their result only. To be closed by whoever stops early: the
        request in the model is then cancelled.

        Raises:
            ValidationFailed: also for lists, of tasks that stream.
            and what `infer` raises.
        """
        run = _Run(self._store.servable(name, version), request)
        with self._observed(run):
            async with self._ready(run, streaming=True) as ready:
                responses: list[list[Outputs]] = [[]]
                with run.computing():
                    if ready.words.streams:
                        async with contextlib.aclosing(self._told(ready, responses[0])) as told:
                            async for event in told:
                                yield event
                    else:
                        responses = await ready.sender.all(ready.plan)
            yield self._result(run, ready, responses)

    async def _told(self, ready: _Ready, responses: list[Outputs]) -> AsyncGenerator[Event, None]:
        """Events of the only item; its responses are added to `responses`."""
        item, more = ready.plan.items[0], ready.words.streaming
        async with contextlib.aclosing(ready.sender.stream(item, ready.plan, more)) as stream:
            async for response in stream:
                responses.append(response)
                event = ready.words.event(response)
                if event is not None:
                    yield event

    @contextlib.asynccontextmanager
    async def _ready(self, run: _Run, *, streaming: bool = False) -> AsyncIterator[_Ready]:
        """The call checked, its files fetched, its model leased."""
        request, now = run.request, asyncio.get_running_loop().time()
        priority = priority_level(request.priority)
        timeout = check_timeout(request.timeout_seconds, self._request_timeout)
        terms = Terms(timeout=timeout, deadline=now + timeout, priority=priority)
        words, plan = await self._checked(run, streaming=streaming)
        run.batch_size = len(plan.items)
        if not plan.items:
            yield _Ready(words, plan, self._sender(run.servable, terms))
            return
        checked = run.servable
        lease = self._scheduler.lease(checked, deadline=terms.deadline, priority=priority)
        async with lease as run.servable:
            # During a switch it may be another version, with other tensors.
            if run.servable.form != checked.form:
                words, plan = await self._checked(run, streaming=streaming)
            yield _Ready(words, plan, self._sender(run.servable, terms))

    def _sender(self, servable: Servable, terms: Terms) -> Sender:
        return Sender(self._client, servable, terms, self._suspect)

    async def _checked(self, run: _Run, *, streaming: bool) -> tuple[Wording, Plan]:
        servable, request = run.servable, run.request
        words = wording(servable.model_id, str(servable.task_type), servable.form, self._rules)
        if _characters(request.input_data) < LARGE_INPUT:
            plan = words.check(request.input_data, request.parameters)
        else:
            plan = await asyncio.to_thread(words.check, request.input_data, request.parameters)
        if streaming and words.streams and not (plan.single and plan.items):
            raise ValidationFailed.field("stream", "takes one item at a time, not lists")
        return words, await self._url_inputs.fetched(plan)

    def _result(
        self, run: _Run, ready: _Ready, responses: Sequence[Sequence[Outputs]]
    ) -> InferResult:
        try:
            output = ready.words.shape(responses, single=ready.plan.single)
        except KeyError as error:
            why = f"its answer lacks the output {error}"
            raise InferenceFailed(run.servable.model_id, why) from error
        except ValueError as error:
            raise InferenceFailed(run.servable.model_id, str(error)) from error
        return InferResult(
            model_id=run.servable.model_id,
            version=run.servable.version,
            output_data=output,
            metadata=InferMetadata(
                inference_time_ms=round(run.inference_seconds * 1000, 3),
                total_time_ms=round((time.perf_counter() - run.began) * 1000, 3),
                batch_size=len(ready.plan.items),
                device=self._device,
                usage=usage(responses),
            ),
        )

    @contextlib.contextmanager
    def _observed(self, run: _Run) -> Iterator[None]:
        """Tells the bus how the call ended."""
        code = None
        try:
            yield
        except ModelMoraError as error:
            code = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):  # the client has gone away
            code = "CANCELLED"
            raise
        finally:
            self._bus.publish(
                events.InferenceFinished(
                    model_id=run.servable.model_id,
                    task_type=str(run.servable.task_type),
                    protocol="rest",
                    status="error" if code else "success",
                    duration_seconds=time.perf_counter() - run.began,
                    batch_size=None if code else run.batch_size,
                    error_code=code,
                )
            )


def _characters(value: Any) -> int:
    """About how much text a JSON value holds."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(_characters, parts)) if isinstance(value, dict | list) else 0
