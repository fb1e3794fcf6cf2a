"""Sends the requests of one leased call to Triton; the one place where a request leaves."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import (
    InferenceFailed,
    InferenceTimeout,
    InvalidInput,
    ModelMoraError,
    ServiceUnavailable,
)
from controlplane.inference import arrays
from controlplane.inference.mortal import while_alive
from controlplane.inference.tasks.blame import in_callers_words
from controlplane.triton.failures import (
    ModelUnknown,
    RequestRejected,
    TritonError,
    TritonTimeout,
    TritonUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence

    from controlplane.inference.arrays import Array
    from controlplane.inference.tasks.plan import Item, Outputs, Plan
    from controlplane.registry.model import Servable
    from controlplane.triton.client import TritonClient

# Enough to keep the model busy; all at once would fill its queue ahead of everybody else.
REQUESTS_AT_A_TIME = 4


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Until when and how urgently a call is to be served.

    Attributes:
        timeout: seconds that the caller gives it, for messages.
        deadline: on the event loop's clock.
        priority: Triton's level, 1 is first.
    """

    timeout: float
    deadline: float
    priority: int


class Sender:
    """Sends what one call needs, under a lease of `servable`."""

    def __init__(
        self,
        client: TritonClient,
        servable: Servable,
        terms: Terms,
        suspect: Callable[[Servable], None],
        process_id: int | None = None,
    ) -> None:
        """`process_id`: the model's, where it can be seen."""
        self._client = client
        self._servable = servable
        self._terms = terms
        self._suspect = suspect
        self._process_id = process_id

    async def all(self, plan: Plan) -> list[list[Outputs]]:
        """Every item's responses, in the items' order.

        Items travel together up to the model's batch size; without one, each by itself.
        """
        chunks = list(_chunks(plan.items, self._servable.form.max_batch_size))
        turn = asyncio.Semaphore(REQUESTS_AT_A_TIME)

        async def run(first: int, chunk: Sequence[Item]) -> list[list[Outputs]]:
            async with turn:
                return await self._chunk(chunk, plan, first)

        firsts = accumulate(map(len, chunks), initial=0)
        found = await _together([run(*numbered) for numbered in zip(firsts, chunks, strict=False)])
        return [item for chunk in found for item in chunk]

    async def stream(
        self, item: Item, plan: Plan, more: Mapping[str, Any]
    ) -> AsyncGenerator[Outputs, None]:
        """One item's responses as they come; to be closed by whoever stops early."""
        async with contextlib.aclosing(self._responses([item], plan, more)) as responses:
            async for (outputs,) in responses:
                yield outputs

    async def _chunk(self, chunk: Sequence[Item], plan: Plan, first: int) -> list[list[Outputs]]:
        async with contextlib.aclosing(self._responses(chunk, plan, {}, first)) as responses:
            found = [response async for response in responses]
        return [[response[i] for response in found] for i in range(len(chunk))]

    async def _responses(
        self, chunk: Sequence[Item], plan: Plan, more: Mapping[str, Any], first: int = 0
    ) -> AsyncGenerator[list[Outputs], None]:
        """The responses to one request; each has the outputs of all its items.

        `first`: the place of the first of them among the call's.
        """
        batched = self._servable.form.max_batch_size > 0
        inputs = arrays.batch_of(chunk) if batched else arrays.alone(chunk[0])
        parameters = {**plan.parameters, **more}
        try:
            async with contextlib.aclosing(self._send(inputs, plan, parameters)) as answers:
                async for outputs in answers:
                    yield arrays.rows(outputs, len(chunk)) if batched else [arrays.row(outputs)]
        except RequestRejected as error:
            field, what = in_callers_words(str(error), plan, first)
            # a sentence about the input as a whole stands for itself
            message = what if field == "input_data" else f"{field}: {what}"
            raise InvalidInput(message, field=field, what=what) from error
        except TritonError as error:
            raise self._fact(error) from error
        except ValueError as error:
            raise InferenceFailed(self._servable.model_id, str(error)) from error

    async def _send(
        self, inputs: dict[str, Array], plan: Plan, parameters: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Array], None]:
        """One request to Triton; a decoupled model answers any number of times."""
        left = self._terms.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise InferenceTimeout(self._servable.model_id, self._terms.timeout)
        name, version = self._servable.key
        if not self._servable.form.decoupled:
            yield await self._client.infer(
                name,
                version,
                inputs,
                plan.outputs,
                timeout=left,
                priority=self._terms.priority,
                parameters=parameters,
            )
            return
        stream = self._client.stream(name, version, inputs, timeout=left, parameters=parameters)
        async with (
            contextlib.aclosing(stream),
            contextlib.aclosing(while_alive(stream, self._process_id)) as responses,
        ):
            async for outputs in responses:
                yield outputs

    def _fact(self, error: TritonError) -> ModelMoraError:
        model_id = self._servable.model_id
        if isinstance(error, TritonTimeout):
            return InferenceTimeout(model_id, self._terms.timeout)
        if isinstance(error, TritonUnavailable):
            return ServiceUnavailable(f"Triton is not reachable: {error}")
        self._suspect(self._servable)
        if isinstance(error, ModelUnknown):
            return ServiceUnavailable(f"Triton no longer holds {model_id}: {error}")
        return InferenceFailed(model_id, str(error))


def _chunks(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """Neighbours whose tensors have the same shapes, at most `most` together."""
    begin = 0
    for end in range(1, len(items) + 1):
        full = end - begin >= max(most, 1)
        if end == len(items) or full or _differ(items[begin], items[end]):
            yield items[begin:end]
            begin = end


def _differ(one: Item, other: Item) -> bool:
    return arrays.signature(one) != arrays.signature(other)


async def _together(calls: Sequence[Awaitable[list[list[Outputs]]]]) -> list[list[list[Outputs]]]:
    """All results; when one fails, the others end before this raises."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # the others of a failed request only burn processor time
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
