"""An inference's events as server-sent events (WHATWG HTML, §9.2).

The call runs in a task of its own, so that a client that stops reading cannot keep the model: after
a while without room for more the call is cancelled.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog
from litestar.response import Stream

from controlplane.errors import InferenceFailed, ModelMoraError
from controlplane.gateway.errors import GENERIC_MESSAGE, HTTP_STATUS, envelope, lookup
from controlplane.gateway.rest.infer_schemas import InferenceResponse
from controlplane.inference.infer import InferResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from controlplane.inference.tasks.task import Event

log = structlog.get_logger(__name__)

# Proxies close what is silent for a minute. It is also how long a failure still becomes an HTTP
# status: until then nothing is sent, unless there is something to tell.
KEEP_ALIVE_SECONDS = 15.0
STALLED_SECONDS = 30.0
# A client that reads never leaves so many unread, nor so many bytes.
_UNREAD = 256
_UNREAD_BYTES = 16_000_000
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Message(NamedTuple):
    """An event as it is sent; of the last one `ends` is true."""

    text: bytes
    ends: bool = False
    error: Exception | None = None

    @classmethod
    def of(cls, name: str, data: Any, *, ends: bool, error: Exception | None = None) -> _Message:
        # `str`: an error's details may hold what JSON has no form for.
        body = msgspec.json.encode(data, enc_hook=str)
        return cls(b"event: %s\ndata: %s\n\n" % (name.encode(), body), ends, error)


async def event_stream(events: AsyncGenerator[Event | InferResult, None], model_id: str) -> Stream:
    """A call's events as a response.

    Raises:
        ModelMoraError: what made the call fail before it had told anything.
    """
    call = _Call(events, model_id)
    try:
        first = await call.next()
    except BaseException:  # the client has gone away
        call.cancel()
        raise
    if first is not None and first.error is not None:
        raise first.error
    return Stream(_text(call, first), media_type="text/event-stream", headers=_HEADERS)


async def _text(call: _Call, message: _Message | None) -> AsyncGenerator[bytes, None]:
    try:
        while True:
            yield b": still here\n\n" if message is None else message.text
            if message is not None and message.ends:
                return
            message = await call.next()
    finally:
        call.cancel()


class _Call:
    """A call that runs, and what it has told and nobody has read yet."""

    def __init__(self, events: AsyncGenerator[Event | InferResult, None], model_id: str) -> None:
        self._unread: asyncio.Queue[_Message] = asyncio.Queue()
        self._unread_bytes = 0
        self._room = asyncio.Event()
        self._model_id = model_id
        self._task = asyncio.create_task(self._run(events))

    async def next(self) -> _Message | None:
        """The next message; None when there was none for KEEP_ALIVE_SECONDS."""
        try:
            message = (
                await asyncio.wait_for(self._unread.get(), KEEP_ALIVE_SECONDS)
                if self._unread.empty()
                else self._unread.get_nowait()
            )
        except (asyncio.TimeoutError, TimeoutError):
            return None
        self._unread_bytes -= len(message.text)
        self._room.set()
        return message

    def cancel(self) -> None:
        """End the call if it still runs; the request in the model is cancelled too."""
        self._task.cancel()

    async def _run(self, events: AsyncGenerator[Event | InferResult, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._tell(_message(event))
                    await self._wait_for_room()
        except ModelMoraError as error:
            self._fail(error, envelope(error.code, error.message, error.details))
        except Exception as error:
            log.exception("unexpected error", error_code="INTERNAL_ERROR")
            self._fail(error, envelope("INTERNAL_ERROR", GENERIC_MESSAGE))

    def _fail(self, error: Exception, body: dict[str, Any]) -> None:
        data = {**body, "status": lookup(HTTP_STATUS, error, 500)}
        self._tell(_Message.of("error", data, ends=True, error=error))

    def _tell(self, message: _Message) -> None:
        self._unread_bytes += len(message.text)
        self._unread.put_nowait(message)

    async def _wait_for_room(self) -> None:
        if self._unread.qsize() < _UNREAD and self._unread_bytes < _UNREAD_BYTES:
            return
        self._room.clear()
        try:
            await asyncio.wait_for(self._room.wait(), STALLED_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            why = f"nobody read its answer for {STALLED_SECONDS:g} s"
            raise InferenceFailed(self._model_id, why) from None


def _message(event: Event | InferResult) -> _Message:
    if isinstance(event, InferResult):
        return _Message.of("done", InferenceResponse.of(event), ends=True)
    return _Message.of(event.name, event.data, ends=False)
