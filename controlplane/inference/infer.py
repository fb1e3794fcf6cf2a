"""Synchronous inference for REST: check, lease, run on Triton, shape the answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane import events
from controlplane.errors import InferenceFailed, ModelMoraError, ValidationFailed
from controlplane.inference.again import leased_once_more, until_noticed, was_lost
from controlplane.inference.fetching import UrlInputs
from controlplane.inference.sending import Sender, Terms
from controlplane.inference.tasks.limits import check_timeout, priority_level
from controlplane.inference.tasks.long_text import LongText
from controlplane.inference.tasks.media import MediaRules
from controlplane.inference.tasks.wording import usage, wording
from controlplane.lifecycle.memory import device

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

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
    """One call: what it asks, of which version; what it has become so far.

    Attributes:
        servable: the version that was resolved, then the one that is leased.
        words, plan: the request as it was checked against that version's tensors.
    """

    words: Wording
    plan: Plan
    terms: Terms

    def __init__(self, servable: Servable, request: InferRequest, *, streaming: bool) -> None:
        self.servable = servable
        self.request = request
        self.streaming = streaming
        self.began = time.perf_counter()
        self.inference_seconds = 0.0

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Counts the time spent in it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.inference_seconds += time.perf_counter() - began


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
        run = _Run(self._store.servable(name, version), request, streaming=False)
        with self._observed(run):
            await self._begin(run)
            return self._result(run, await self._answers(run))

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
        run = _Run(self._store.servable(name, version), request, streaming=True)
        with self._observed(run):
            await self._begin(run)
            responses: list[Outputs] = []
            if run.words.streams:
                async with contextlib.aclosing(self._told(run, responses)) as told:
                    async for event in told:
                        yield event
                yield self._result(run, [responses])
            else:
                yield self._result(run, await self._answers(run))

    async def _begin(self, run: _Run) -> None:
        """Check the request, fetch the files that it names."""
        request, now = run.request, asyncio.get_running_loop().time()
        priority = priority_level(request.priority)
        timeout = check_timeout(request.timeout_seconds, self._request_timeout)
        run.terms = Terms(timeout=timeout, deadline=now + timeout, priority=priority)
        await self._check(run)

    async def _check(self, run: _Run) -> None:
        servable, request = run.servable, run.request
        words = wording(servable.model_id, str(servable.task_type), servable.form, self._rules)
        if _characters(request.input_data) < LARGE_INPUT:
            plan = words.check(request.input_data, request.parameters)
        else:
            plan = await asyncio.to_thread(words.check, request.input_data, request.parameters)
        if run.streaming and words.streams and not (plan.single and plan.items):
            raise ValidationFailed.field("stream", "takes one item at a time, not lists")
        run.words, run.plan = words, await self._url_inputs.fetched(plan)

    async def _sender(self, run: _Run, leased: Servable) -> Sender:
        checked, run.servable = run.servable, leased
        # During a switch it may be another version, with other tensors.
        if leased.form != checked.form:
            await self._check(run)
        view = self._scheduler.view_of(*leased.key)
        process_id = view.process_id if view else None
        return Sender(self._client, leased, run.terms, self._suspect, process_id)

    async def _answers(self, run: _Run) -> list[list[Outputs]]:
        """Every item's responses, under a lease; once more when the process died meanwhile."""

        async def attempt(leased: Servable) -> list[list[Outputs]]:
            sender = await self._sender(run, leased)
            with run.computing():
                return await sender.all(run.plan)

        if not run.plan.items:
            return []
        return await leased_once_more(
            self._scheduler,
            run.servable,
            attempt,
            deadline=run.terms.deadline,
            priority=run.terms.priority,
        )

    async def _told(self, run: _Run, responses: list[Outputs]) -> AsyncGenerator[Event, None]:
        """Events of the only item, whose responses are added to `responses`.

        When the process dies before the first of them, the request is sent once more.
        """
        terms = run.terms
        for last in (False, True):
            lease = self._scheduler.lease(
                run.servable, deadline=terms.deadline, priority=terms.priority
            )
            async with lease as leased:
                began = time.time()
                try:
                    async with contextlib.aclosing(self._events(run, leased, responses)) as told:
                        async for event in told:
                            yield event
                except ModelMoraError as error:
                    if last or responses or not was_lost(error):
                        raise
                else:
                    return
            await until_noticed(self._scheduler, leased, began, terms.deadline)

    async def _events(
        self, run: _Run, leased: Servable, responses: list[Outputs]
    ) -> AsyncGenerator[Event, None]:
        sender = await self._sender(run, leased)
        stream = sender.stream(run.plan.items[0], run.plan, run.words.streaming)
        with run.computing():
            async with contextlib.aclosing(stream) as answers:
                async for response in answers:
                    responses.append(response)
                    event = run.words.event(response)
                    if event is not None:
                        yield event

    def _result(self, run: _Run, responses: Sequence[Sequence[Outputs]]) -> InferResult:
        try:
            output = run.words.shape(responses, single=run.plan.single)
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
                batch_size=len(run.plan.items),
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
                    batch_size=None if code else len(run.plan.items),
                    error_code=code,
                )
            )


def _characters(value: Any) -> int:
    """About how much text a JSON value holds."""
    if isinstance(value, str | LongText):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(_characters, parts)) if isinstance(value, dict | list) else 0
