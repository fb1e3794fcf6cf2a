"""The client's streams of one inference: tokens, steps and responses as they come.

Not steps, as the other operations are (`client_steps.py`): what is told is pulled by the caller,
who may stop at any time, and the server then cancels the request in the model.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from controlplane.client_http import api_error, is_event_stream, unreachable
from controlplane.client_sse import SILENCE_SECONDS, EventLines
from controlplane.client_steps import given, spelled
from controlplane.client_types import InferResult, ModelMoraApiError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class InferEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an inference told.

    Attributes:
        event: delta (a piece of the text), progress (a step of an image), response (of a model
            with tensors of its own), or done, which is the last.
        data: {text}, {step, steps}, outputs by name; of `done` the whole answer.
        result: of `done` the answer as `infer` gives it.
    """

    event: str
    data: dict[str, Any]
    result: InferResult | None = None

    @property
    def text(self) -> str:
        """The piece of a delta; of other events nothing."""
        return str(self.data.get("text", "")) if self.event == "delta" else ""


class Streaming:
    """`stream`, for the client that waits."""

    url: str
    _http: httpx.Client

    def stream(
        self,
        model_id: str,
        input_data: dict[str, Any],
        parameters: dict[str, Any] | None = None,
        *,
        priority: str | None = None,
        timeout_seconds: float | None = None,
        version: str | None = None,
    ) -> Iterator[InferEvent]:
        """Run one inference and tell of it as it happens; arguments as of `infer`.

        The last event is `done`. Closing the iterator earlier ends the request at the server.

        Raises:
            ModelMoraApiError: refused, or failed on the way.
            ServerUnreachable: no answer, or it broke off.
        """
        options = given(priority=priority, timeout_seconds=timeout_seconds, version=version)
        asked = _request(model_id, input_data, parameters, options)
        reader = _Reader()
        with unreachable(self.url), self._http.stream(**asked) as response:
            if not is_event_stream(response):
                response.read()
                raise api_error(response)
            for line in response.iter_lines():
                event = reader.take(line)
                if event is not None:
                    yield event
        reader.check_end(self.url)


class AsyncStreaming:
    """`stream`, for the client that awaits."""

    url: str
    _http: httpx.AsyncClient

    async def stream(
        self,
        model_id: str,
        input_data: dict[str, Any],
        parameters: dict[str, Any] | None = None,
        *,
        priority: str | None = None,
        timeout_seconds: float | None = None,
        version: str | None = None,
    ) -> AsyncIterator[InferEvent]:
        """As `ModelMoraClient.stream`, to be iterated with `async for`."""
        options = given(priority=priority, timeout_seconds=timeout_seconds, version=version)
        asked = _request(model_id, input_data, parameters, options)
        reader = _Reader()
        with unreachable(self.url):
            async with self._http.stream(**asked) as response:
                if not is_event_stream(response):
                    await response.aread()
                    raise api_error(response)
                async with aclosing(response.aiter_lines()) as lines:  # type: ignore[type-var]
                    async for line in lines:
                        event = reader.take(line)
                        if event is not None:
                            yield event
        reader.check_end(self.url)


def _request(
    model_id: str,
    input_data: dict[str, Any],
    parameters: dict[str, Any] | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The call as arguments of httpx's `stream`."""
    body = {"input_data": input_data, "parameters": parameters or {}, "stream": True, **options}
    return {
        "method": "POST",
        "url": f"/api/v1/infer/{spelled(model_id)}",
        "content": msgspec.json.encode(body),
        "headers": {"Content-Type": "application/json", "Accept": "text/event-stream"},
        "timeout": httpx.Timeout(SILENCE_SECONDS, connect=5.0),
    }


class _Reader:
    """Reads the stream of one inference."""

    def __init__(self) -> None:
        self._lines = EventLines()
        self._done = False

    def take(self, line: str) -> InferEvent | None:
        """Read one line; the event that it completes.

        Raises:
            ModelMoraApiError: the event tells that the inference failed.
        """
        if (event := self._lines.take(line)) is None:
            return None
        name, data = event
        return self._event(name, msgspec.json.decode(data))

    def check_end(self, url: str) -> None:
        """The stream may end after its last event only. Raises ServerUnreachable."""
        if not self._done:
            raise ServerUnreachable(url, "the answer broke off")

    def _event(self, name: str, data: dict[str, Any]) -> InferEvent:
        if name == "error":
            error = data["error"]
            raise ModelMoraApiError(
                error["code"],
                error["message"],
                error.get("details"),
                data.get("status", 500),
                error.get("trace_id"),
            )
        self._done = name == "done"
        result = msgspec.convert(data, InferResult) if self._done else None
        return InferEvent(event=name, data=data, result=result)
