"""A client's call: what all kinds have in common, and those that are answered here."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import InferenceTimeout, InvalidInput
from controlplane.gateway.errors import BodyTooLarge
from controlplane.gateway.grpc_relay import frames, status
from controlplane.gateway.grpc_relay.headers import encode
from controlplane.gateway.grpc_relay.message import PREFIX_SIZE
from controlplane.gateway.trace import begin_trace, choose_trace_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controlplane.gateway.grpc_relay.headers import Block, HeaderFields
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream import Stream

    Answer = Callable[["AnsweredCall", bytes], Awaitable[bytes]]

access = structlog.get_logger("modelmora.access")

_MAX_LOCAL = 1024 * 1024  # bytes of a message that is read whole


class Call(ABC):
    """One call; owner of the client's stream.

    Attributes:
        trace_id: goes into the log and, as a trailer, to the client.
        model_id: the model it turned out to be for.
        timeout: seconds it was given; `deadline` is on the event loop's clock.
        answering: response headers have been sent.
        done: it has ended; whatever comes in late is nobody's business any more.
    """

    __slots__ = (
        "answering",
        "began",
        "client",
        "deadline",
        "done",
        "head",
        "loop",
        "model_id",
        "relay",
        "task",
        "timeout",
        "trace_id",
    )

    def __init__(self, relay: Relay, client: Stream, head: RequestHead) -> None:
        self.relay = relay
        self.client = client
        self.head = head
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.trace_id = choose_trace_id(head.trace_id, head.traceparent)
        self.model_id: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.answering = self.done = False
        self.timeout = relay.request_timeout
        if head.timeout is not None:
            self.timeout = min(self.timeout, head.timeout)
        self.deadline = self.began + self.timeout
        relay.deadlines.add(self)

    # -- time --------------------------------------------------------------------------------

    def end_at(self, deadline: float | None) -> None:
        """Have the call end then; None: whenever the client likes."""
        if deadline is None:
            self.relay.deadlines.discard(self)
        else:
            self.deadline = deadline
            self.relay.deadlines.add(self)

    def time_is_up(self) -> None:
        """The deadline has come."""
        # Who waits for a model has the same deadline, and a better word for what went wrong.
        if self.task is None:
            self.fail(InferenceTimeout(self.model_id or self.head.method, round(self.timeout, 3)))

    # -- what comes in -----------------------------------------------------------------------

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None:
        """Headers of Triton's answer come to relayed calls only; a client's begin a call."""
        raise RuntimeError(f"headers came for {self.head.method}, which is not relayed")

    @abstractmethod
    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Bytes of messages have come in."""

    def take_whole(self, stream: Stream, head: Block, data: bytes, trailers: Block) -> bool:
        return False

    def on_drained(self, stream: Stream) -> None:
        """The client has taken what was queued for it."""
        if self.done and stream.send_ended and not stream.receive_ended:
            stream.reset(frames.NO_ERROR)

    def on_reset(self, stream: Stream, code: int) -> None:
        self.end(status.CANCELLED)

    def on_lost(self, stream: Stream, reason: str) -> None:
        self.end(status.CANCELLED)

    # -- how it ends -------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """Answer with an error's status."""
        if not self.done:
            code, text, extra = status.status_of(error)
            self.answer_status(code, text, extra)

    def answer_status(self, code: int, text: str = "", extra: HeaderFields = ()) -> None:
        """End the call with a status of ours."""
        fields = status.trailers(code, text, extra)
        if not self.answering:
            fields = status.RESPONSE_HEADERS + fields
        self.finish(code, encode(fields), text)

    def finish(self, code: int, trailers: bytes, text: str = "") -> None:
        """End the call with trailers, to which the trace id is added."""
        if self.done:
            return
        client = self.client
        client.finish(trailers + status.trace_trailer(self.trace_id))
        if client.send_ended and not client.receive_ended:
            client.reset(frames.NO_ERROR)  # what it still sends interests nobody
        self.end(code, text)

    def end(self, code: int, text: str = "") -> None:
        """Let go of everything; nothing more is sent."""
        if self.done:
            return
        self.done = True
        self.relay.deadlines.discard(self)
        if self.task is not None and self.task is not asyncio.current_task(self.loop):
            self.task.cancel()
        self.task = None
        self._log(code, text)

    def _log(self, code: int, text: str) -> None:
        if code == status.OK:
            if not self.relay.logs_successes:
                return
            write = access.debug
        else:
            serious = code in (status.INTERNAL, status.UNAVAILABLE)
            write = access.warning if serious else access.info
        details = {"reason": text} if text else {}
        if self.model_id:
            details["model_id"] = self.model_id
        write(
            "grpc",
            method=self.head.method or self.head.path,
            status=status.NAMES.get(code, str(code)),
            duration_ms=round((self.loop.time() - self.began) * 1000, 3),
            trace_id=self.trace_id,
            **details,
        )


class AnsweredCall(Call):
    """A call that is answered here, from its one whole message."""

    __slots__ = ("_answer", "_received")

    def __init__(self, relay: Relay, client: Stream, head: RequestHead, answer: Answer) -> None:
        super().__init__(relay, client, head)
        self._answer = answer
        self._received = b""

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if self.done or self.task is not None:
            return
        self._received += data
        if len(self._received) > _MAX_LOCAL:
            self.fail(BodyTooLarge(_MAX_LOCAL))
        elif end:
            self.task = self.loop.create_task(self._run())
        else:
            stream.grant(0, frames.DEFAULT_WINDOW)

    async def _run(self) -> None:
        begin_trace(self.trace_id, None)
        try:
            answer = await self._answer(self, self._message())
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            self.fail(error)
            return
        if not self.done:
            self.client.send_headers(status.RESPONSE_BLOCK)
            self.answering = True
            self.client.send_data(b"\0" + len(answer).to_bytes(4, "big") + answer)
            self.answer_status(status.OK)

    def _message(self) -> bytes:
        size = int.from_bytes(self._received[1:PREFIX_SIZE], "big")
        message = self._received[PREFIX_SIZE:]
        if len(self._received) < PREFIX_SIZE or len(message) != size:
            raise InvalidInput("The call needs one whole message.")
        if self._received[0]:
            return self.relay.inflate(message, self.head.encoding, _MAX_LOCAL)
        return message
