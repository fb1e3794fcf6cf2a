"""ModelStreamInfer: any number of requests for any models, any number of answers.

Each request leases its model, from its name to its last answer, as a call of its own would
(`stream_requests.py`): a stream that is idle holds nothing. As with Triton, an error that concerns
one request is one of the answers, and the stream goes on.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from controlplane.errors import (
    InferenceFailed,
    InvalidInput,
    ModelMoraError,
    ServiceUnavailable,
)
from controlplane.gateway import v2, wire
from controlplane.gateway.grpc_relay import status
from controlplane.gateway.grpc_relay.answers import AnswerReader
from controlplane.gateway.grpc_relay.message import PREFIX_SIZE, Message
from controlplane.gateway.grpc_relay.relayed import RelayedCall
from controlplane.gateway.grpc_relay.stream import NOBODY
from controlplane.gateway.grpc_relay.stream_messages import StreamMessage
from controlplane.gateway.grpc_relay.stream_requests import Request, StreamRequests
from controlplane.gateway.grpc_relay.upstream import RESPONSE_WINDOW

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream import Stream
    from controlplane.lifecycle.lease import Lease
    from controlplane.registry.model import Servable

_ERROR_MESSAGE = 1  # field of ModelStreamInferResponse


class StreamingCall(RelayedCall):
    """One stream of requests."""

    __slots__ = ("_answers", "_asking", "_notices", "_outcome", "_requests", "_skip")

    def __init__(self, relay: Relay, client: Stream, head: RequestHead) -> None:
        super().__init__(relay, client, head)
        if head.timeout is None:
            self.end_at(None)
        elif head.timeout > self.timeout:  # a stream may live longer than a request may take
            self.timeout = head.timeout
            self.end_at(self.began + head.timeout)
        self._requests = StreamRequests(relay)
        self._asking: Request | None = None  # the one that is coming in, until it is sent on
        self._answers = AnswerReader()
        self._notices: list[bytes] = []  # answers of ours, to be put between Triton's
        self._skip = 0  # bytes of a refused message that are still to come
        self._outcome: str | None = None  # error code of the requests that end with the stream

    # -- requests ----------------------------------------------------------------------------

    def _begin(self, prefix: bytes) -> Message:
        return StreamMessage(prefix, self.head.encoding, self.relay.max_inflated)

    def _step(self) -> bool:
        if self._skip:
            skipped = min(self._skip, len(self._pending))
            self._pending = self._pending[skipped:]
            self._skip -= skipped
            if self._skip:
                return self._nothing_left()
        message = self._message
        if message is None and len(self._pending) < PREFIX_SIZE:
            return self._between_messages()
        try:
            super()._step()
        except ModelMoraError as error:
            return self._refuse_message(error)
        message = self._message
        if self._waiting or message is None or not (message.addressed and message.complete):
            return False
        assert isinstance(message, StreamMessage)
        assert self._leased is not None
        self._requests.said(self._leased, message.said)
        self._message = None
        return True

    def _between_messages(self) -> bool:
        if not self._client_ended:
            return False
        if self._pending:
            return self._nothing_left()
        if self._upstream is not None:
            self._upstream.send_data(b"", end=True)
        else:  # nothing was asked of Triton, or nothing that it could be asked
            self._flush_notices()
            self.answer_status(status.OK)
        return False

    def _send_on(self, message: Message) -> bool:
        upstream = self._upstream
        assert upstream is not None
        prefix, self._prefix = self._prefix, b""
        data = message.take(prefix)
        if data:
            upstream.send_data(data)
        if self._client_ended and not message.complete and not self._pending:
            raise InvalidInput("The call ended before its message did.")
        return True

    def _refuse_message(self, error: ModelMoraError) -> bool:
        """Answer a request with an error, or end the stream where part of it has been sent on."""
        message = self._message
        sent_on = message is not None and message.addressed
        if message is not None and not sent_on:
            self._count_refused(message, error)
        if self.head.errors_as_status or sent_on or message is None:
            raise error
        if self._client_ended and message.left > len(self._pending):
            raise error
        self._message, self._skip = None, message.left
        self._notice(error)
        return True

    def _count_refused(self, message: Message, error: ModelMoraError) -> None:
        if self._asking is None:  # the name comes first: it is the model's, whatever is wrong
            with contextlib.suppress(ModelMoraError):
                self._resolve(message)
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.over(error.code)

    def _notice(self, error: Exception) -> None:
        answer = wire.text_field(_ERROR_MESSAGE, status.status_of(error)[1])
        self._notices.append(b"\0" + len(answer).to_bytes(4, "big") + answer)
        if self._answers.between:
            self._flush_notices()

    def _flush_notices(self) -> None:
        if self._notices and not self.answering:
            self._begin_answer()
        for notice in self._take_notices():
            self.client.send_data(notice)

    def _take_notices(self) -> list[bytes]:
        notices, self._notices = self._notices, []
        return notices

    # -- leases ------------------------------------------------------------------------------

    def _resolve(self, message: Message) -> Servable:
        servable = super()._resolve(message)
        if self._asking is None:
            self._asking = Request(self.relay.services, servable)
        return servable

    def _lease_now(self, message: Message) -> Servable | None:
        servable = self._resolve(message)
        priority = self._terms(message)
        if self._is_connected:
            leased = self._requests.borrow(servable)
            if leased is not None:
                return leased
            lease = self._new_lease(message, servable, priority)
            leased = lease.try_enter()
            if leased is not None:
                self._lease = lease
                return leased
        self._waiting = True
        self.task = self.loop.create_task(self._wait(message, servable, priority))
        return None

    @property
    def _is_connected(self) -> bool:
        return self._upstream is not None or self.relay.upstream.connection() is not None

    def _new_lease(self, message: Message, servable: Servable, priority: int) -> Lease:
        # One of a sequence must not wait for those that run: in Triton they may be waiting for
        # sequences to end, and it may be the one that ends its own.
        return self.relay.services.scheduler.lease(
            servable,
            deadline=self._wait_until(),
            priority=priority,
            place=not message.scan.in_sequence,
        )

    def _wait_until(self) -> float:
        deadline = self.loop.time() + self.relay.request_timeout
        return min(deadline, self.deadline) if self in self.relay.deadlines else deadline

    def _terms(self, message: Message) -> int:
        return v2.terms(self.timeout, priority=message.scan.priority).priority

    async def _wait(self, message: Message, servable: Servable, priority: int) -> None:
        try:
            leased = await self._leased_and_connected(servable, priority)
            self._open(message, leased)
        except ModelMoraError as error:
            self.task = None
            self._waiting = False
            try:
                self._refuse_message(error)
            except ModelMoraError:
                self.fail(error)
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            self.fail(error)
        if not self.done:
            self.task = None
            self._waiting = False
            self._advance()

    async def _leased_and_connected(self, servable: Servable, priority: int) -> Servable:
        message = self._message
        assert message is not None
        while True:
            # First the connection: a lease that was had from a server that is gone means nothing.
            if self._upstream is None:
                await self.relay.upstream.connected(self._wait_until())
            leased = self._requests.borrow(servable)
            if leased is not None:
                return leased
            lease = self._new_lease(message, servable, priority)
            leased = await lease.__aenter__()
            if self._is_connected:
                self._lease = lease
                return leased
            lease.leave()

    def _open(self, message: Message, leased: Servable) -> None:
        if self._upstream is None:
            super()._open(message, leased)
        else:
            self._leased, self._leased_at = leased, time.time()
            self._prefix = message.address(leased)
        assert isinstance(message, StreamMessage)
        assert self._asking is not None
        if message.silenced:
            self._answers.silences = True
        asking, self._asking = self._asking, None
        asking.lease, self._lease = self._lease, None
        self._requests.sent(asking, leased)
        self.relay.vigil.begin(self)

    # -- answers -----------------------------------------------------------------------------

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None:
        super().on_headers(stream, block, end=end)
        if not self.done and not end and not self.answering:
            self._begin_answer()  # clients may wait for them before they go on

    def _answer_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if stream is not self._upstream:
            return
        passed = []
        for piece, answer in self._answers.feed(data):
            passed.append(piece)
            if answer is not None:
                self._requests.answered(answer)
                passed += self._take_notices()
        data = b"".join(passed)
        if data or end:
            super()._answer_data(stream, data, end=end)
        else:
            stream.grant(self.client.queued, RESPONSE_WINDOW)
        if not self.done and self._requests.idle and self._answers.between:
            self._rest(stream)

    def _rest(self, upstream: Stream) -> None:
        """Nothing is outstanding: end Triton's stream, the next request begins another.

        Triton (2.51) lets go of the models that a stream has used when the stream ends: an unload
        would wait for that, however long ago the last answer was.
        """
        self.relay.vigil.end(self)
        if upstream.send_ended or upstream.wants_end:  # the client has ended its own
            return
        self._upstream = None
        self._answers = AnswerReader()  # what Triton might still send here is for nobody
        upstream.owner = NOBODY
        upstream.send_data(b"", end=True)

    def processes(self) -> set[int]:
        """As `vigil.Running`."""
        return self._requests.processes

    def process_died(self) -> None:
        """As `vigil.Running`."""
        for servable in self._requests.servables:
            self.relay.services.suspect(servable)
        self.fail(ServiceUnavailable("The model's process has died in the midst of its answers."))

    def note_status(self, code: int) -> None:
        if code:
            self._outcome = InferenceFailed.code

    def _try_again(self, reason: str, *, untouched: bool = False) -> bool:
        for servable in self._requests.servables:
            self.relay.services.suspect(servable)
        return False  # which of its requests had been answered is not known

    # -- the end -----------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        if not self.done:
            self._outcome = getattr(error, "code", "INTERNAL_ERROR")
        super().fail(error)

    def end(self, code: int, text: str = "") -> None:
        if self.done:
            return
        super().end(code, text)
        if code == status.CANCELLED and self._outcome is None:
            self._outcome = status.CANCELLED_CODE
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.over(self._outcome)
        self._requests.end(self._outcome)
        self.relay.vigil.end(self)
