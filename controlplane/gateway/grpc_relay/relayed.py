"""Calls that Triton answers: one request, one answer; the model is leased for as long as it takes.

States of a call: its message comes in until the model is known → `waiting` for a lease (its bytes
are held, other streams pass) → the message flows to Triton → the answer flows back. A request whose
server or model process died before any of the answer was passed on is sent once more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from controlplane.errors import (
    InferenceFailed,
    InferenceTimeout,
    InvalidInput,
    ServiceUnavailable,
)
from controlplane.gateway import v2
from controlplane.gateway.grpc_relay import frames, status
from controlplane.gateway.grpc_relay.calls import Call
from controlplane.gateway.grpc_relay.message import PREFIX_SIZE, Message
from controlplane.gateway.grpc_relay.server import REQUEST_WINDOW
from controlplane.gateway.grpc_relay.upstream import RESPONSE_WINDOW
from controlplane.lifecycle.scheduler import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream import Stream
    from controlplane.lifecycle.lease import Lease
    from controlplane.registry.model import Servable

# What gRPC's servers say of calls that were running when they were told to stop.
_STOPPED = ("Cancelling all calls", "Server shutting down")
# What may be on its way through us of a request that is being sent on.
_FLOWING_WINDOW = 1024 * 1024


class RelayedCall(Call):
    """Reads of a model (metadata, configuration); `infer.py` and `streaming.py` build on it."""

    __slots__ = (
        "_client_ended",
        "_lease",
        "_leased",
        "_leased_at",
        "_message",
        "_pending",
        "_prefix",
        "_response",
        "_tried",
        "_upstream",
        "_waiting",
    )

    def __init__(self, relay: Relay, client: Stream, head: RequestHead) -> None:
        super().__init__(relay, client, head)
        self._message: Message | None = None
        self._pending = b""  # received, not looked at
        self._prefix = b""  # of the message, not sent yet
        self._client_ended = self._waiting = False
        self._lease: Lease | None = None
        self._leased: Servable | None = None
        self._leased_at = 0.0
        self._upstream: Stream | None = None
        self._response: Block | None = None  # its headers, kept back until there is an answer
        self._tried = False

    # -- from the client ---------------------------------------------------------------------

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if self.done:
            return
        if stream is not self.client:
            self._answer_data(stream, data, end=end)
            return
        if end:
            self._client_ended = True
        self._pending = self._pending + data if self._pending else data
        self._advance()

    def _advance(self) -> None:
        """Go on as far as what has come in allows; harmless at any time."""
        try:
            while not self._waiting and not self.done and self._step():
                pass
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            self.fail(error)
        if not self.done:
            self._grant()

    def _step(self) -> bool:
        """One message's next step; False when more must come in first."""
        message = self._message
        if message is None:
            if len(self._pending) < PREFIX_SIZE:
                return self._nothing_left()
            prefix, self._pending = self._pending[:PREFIX_SIZE], self._pending[PREFIX_SIZE:]
            message = self._message = self._begin(prefix)
        if self._pending:
            part, self._pending = message.cut(self._pending)
            message.feed(part)
        if not message.addressed:
            if not message.known:
                return self._nothing_left()
            leased = self._lease_now(message)
            if leased is None:
                return False
            self._open(message, leased)
        return self._send_on(message)

    def _nothing_left(self) -> bool:
        if self._client_ended:
            raise InvalidInput("The call ended before its message did.")
        return False

    def _begin(self, prefix: bytes) -> Message:
        return Message(prefix, self.head.encoding, self.relay.max_inflated, self.relay.retention)

    def _send_on(self, message: Message) -> bool:
        upstream = self._upstream
        assert upstream is not None
        if message.complete and self._pending:
            raise InvalidInput("The call takes one message only.")
        prefix, self._prefix = self._prefix, b""
        end = message.complete and self._client_ended
        data = message.take(prefix)
        if data or end:
            upstream.send_data(data, end=end)
        if self._client_ended and not message.complete:
            return self._nothing_left()
        return False

    def _grant(self) -> None:
        """Let the client go on sending."""
        client, message, upstream = self.client, self._message, self._upstream
        if client.receive_ended:
            return
        # Answers that the client does not take count as well: each request may bring one.
        unread, target = len(self._pending) + client.queued, REQUEST_WINDOW
        if upstream is not None:
            unread += upstream.queued
            target = _FLOWING_WINDOW
        elif message is not None:
            unread += message.unread
            if not message.known and not self._waiting:
                target += message.needs_window
        client.grant(unread, target)

    # -- the lease ---------------------------------------------------------------------------

    def _resolve(self, message: Message) -> Servable:
        """The model that the message names."""
        names = message.scan.names
        servable = self.relay.services.store.servable(names.model_name, names.model_version or None)
        self.model_id = servable.model_id
        return servable

    def _lease_now(self, message: Message) -> Servable | None:
        """Lease the model; None when that takes a while, after which the call goes on by itself."""
        servable = self._resolve(message)
        priority = self._terms(message)
        if not self._tried and self.relay.upstream.connection() is not None:
            lease = self.relay.services.scheduler.lease(
                servable, deadline=self.deadline, priority=priority
            )
            leased = lease.try_enter()
            if leased is not None:
                self._lease = lease
                return leased
        self._waiting = True
        self.task = self.loop.create_task(self._wait(message, servable, priority))
        return None

    def _terms(self, message: Message) -> int:
        """Take the request's own timeout into account; returns its priority."""
        scan = message.scan
        if not scan.timeout_us:
            priority = scan.priority
            return (
                v2.terms(self.timeout, priority=priority).priority if priority else DEFAULT_PRIORITY
            )
        terms = v2.terms(self.timeout, priority=scan.priority, timeout_us=scan.timeout_us)
        if self.began + terms.timeout < self.deadline:
            self.timeout = terms.timeout
            self.end_at(self.began + terms.timeout)
        return terms.priority

    async def _wait(self, message: Message, servable: Servable, priority: int) -> None:
        try:
            leased = await self._leased_and_connected(servable, priority)
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            self.fail(error)
            return
        self.task = None
        self._waiting = False
        try:
            self._open(message, leased)
        except Exception as error:  # noqa: BLE001 as above
            self.fail(error)
        self._advance()

    async def _leased_and_connected(self, servable: Servable, priority: int) -> Servable:
        scheduler, upstream = self.relay.services.scheduler, self.relay.upstream
        while True:
            # First the connection: a lease that was had from a server that is gone means nothing.
            await upstream.connected(self.deadline)
            lease = scheduler.lease(servable, deadline=self.deadline, priority=priority)
            leased = await lease.__aenter__()
            if self.loop.time() >= self.deadline:  # nobody has looked at the clock meanwhile
                lease.leave()
                raise InferenceTimeout(servable.model_id, round(self.timeout, 3))
            if upstream.connection() is not None:
                self._lease = lease
                return leased
            lease.leave()

    def _open(self, message: Message, leased: Servable) -> None:
        connection = self.relay.upstream.connection()
        assert connection is not None  # nothing has been awaited since it was there
        self._leased, self._leased_at = leased, time.time()
        self._upstream = connection.open(self, self.head.forwarded)
        self._prefix = message.address(leased)

    # -- from Triton -------------------------------------------------------------------------

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None:
        if self.done or stream is not self._upstream:
            return
        if end:
            self._answer_ended(stream, block)
        else:
            self._response = block

    def _answer_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if stream is not self._upstream:
            return
        if not self.answering:
            self._begin_answer()
        self.client.send_data(data)
        stream.grant(self.client.queued, RESPONSE_WINDOW)
        if end:
            self.fail(InferenceFailed(self.model_id or "", "the answer ended without a status"))

    def _begin_answer(self) -> None:
        """From here on the call cannot be tried again."""
        response = self._response
        self.client.send_headers(response.encoded if response else status.RESPONSE_BLOCK)
        self.answering = True
        if self._message is not None:
            self._message.drop_kept()

    def _answer_ended(self, stream: Stream, block: Block) -> None:
        code, text = 0, ""
        if block.get(b"grpc-status") != b"0":
            code, text = status.status_in(block)
            was_not_run = v2.was_not_run(text) or text in _STOPPED
            if was_not_run and self._try_again(text):
                return
        self.note_status(code)
        if self._response is not None and not self.answering:
            self._begin_answer()
        self.finish(code, block.encoded, text)

    def note_status(self, code: int) -> None:
        """Triton has answered with that code."""

    def on_drained(self, stream: Stream) -> None:
        if stream is self.client:
            super().on_drained(stream)
            if self._upstream is not None:
                self._upstream.grant(stream.queued, RESPONSE_WINDOW)
        if not self.done:
            self._grant()

    def on_reset(self, stream: Stream, code: int) -> None:
        if stream is self.client:
            super().on_reset(stream, code)
        elif stream is self._upstream and not self.done:
            reason = f"it ended the call with code {code}"
            if not self._try_again(reason, untouched=code == frames.REFUSED_STREAM):
                self.fail(ServiceUnavailable(f"Triton does not answer: {reason}."))

    def on_lost(self, stream: Stream, reason: str) -> None:
        if stream is self.client:
            super().on_lost(stream, reason)
        elif stream is self._upstream and not self.done and not self._try_again(reason):
            self.fail(ServiceUnavailable(f"Triton does not answer: {reason}."))

    # -- once more ---------------------------------------------------------------------------

    def _try_again(self, reason: str, *, untouched: bool = False) -> bool:
        """Send the request again when its model is well; False when that must not be.

        Args:
            untouched: Triton has not looked at the request, so nothing of it has died.
        """
        message, leased = self._message, self._leased
        if leased is not None and not untouched:
            self.relay.services.suspect(leased)
        if message is None or leased is None or self._tried or self.answering:
            return False
        if not message.kept or (message.scan.in_sequence and not untouched):
            return False
        v2.log.warning("request is sent once more", model_id=leased.model_id, reason=reason)
        self._tried = self._waiting = True
        self._let_go()
        message.rewind()
        self.task = self.loop.create_task(self._heal_and_go_on(message, leased, untouched))
        return True

    async def _heal_and_go_on(self, message: Message, dead: Servable, untouched: bool) -> None:
        try:
            if not untouched:
                await v2.until_noticed(self.relay.services, dead, self._leased_at, self.deadline)
            servable = self._resolve(message)
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            self.fail(error)
            return
        await self._wait(message, servable, self._terms(message))

    # -- the end -----------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Of the lease and of Triton's stream."""
        upstream, self._upstream = self._upstream, None
        self._response = None
        if upstream is not None:
            upstream.reset(frames.CANCEL)
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.leave()

    def end(self, code: int, text: str = "") -> None:
        if not self.done:
            super().end(code, text)
            self._let_go()
            if self._message is not None:
                self._message.drop_kept()
