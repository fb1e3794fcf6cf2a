"""ModelStreamInfer: any number of requests for any models, any number of answers.

Each model that the stream names is leased, without a place among its running requests (a stream may
be idle for hours), until the stream ends: how many answers a request has is the model's own affair.
As with Triton, an error that concerns one request is one of the answers, and the stream goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput, ModelMoraError
from controlplane.gateway import v2, wire
from controlplane.gateway.grpc_relay import status
from controlplane.gateway.grpc_relay.message import PREFIX_SIZE, Message
from controlplane.gateway.grpc_relay.relayed import RelayedCall
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream import Stream
    from controlplane.lifecycle.resident import Resident
    from controlplane.registry.model import Servable

PROTOCOL = "v2_grpc_stream"
_ERROR_MESSAGE = 1  # field of ModelStreamInferResponse


class StreamingCall(RelayedCall):
    """One stream of requests."""

    __slots__ = ("_answers", "_counts", "_notices", "_residents", "_skip")

    def __init__(self, relay: Relay, client: Stream, head: RequestHead) -> None:
        super().__init__(relay, client, head)
        if head.timeout is None:
            self.end_at(None)
        elif head.timeout > self.timeout:  # a stream may live longer than a request may take
            self.timeout = head.timeout
            self.end_at(self.began + head.timeout)
        self._residents: dict[tuple[str, int], Resident] = {}
        self._counts: dict[str, tuple[AbstractContextManager[v2.Outcome], v2.Outcome]] = {}
        self._answers = _Boundaries()
        self._notices: list[bytes] = []  # answers of ours, to be put between Triton's
        self._skip = 0  # bytes of a refused message that are still to come

    # -- requests ----------------------------------------------------------------------------

    def _begin(self, prefix: bytes) -> Message:
        return Message(prefix, self.head.encoding, self.relay.max_inflated, None)

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
        if self.head.errors_as_status or sent_on or message is None:
            raise error
        if self._client_ended and message.left > len(self._pending):
            raise error
        self._message, self._skip = None, message.left
        self._notice(error)
        return True

    def _notice(self, error: Exception) -> None:
        answer = wire.text_field(_ERROR_MESSAGE, status.status_of(error)[1])
        self._notices.append(b"\0" + len(answer).to_bytes(4, "big") + answer)
        if self._answers.between:
            self._flush_notices()

    def _flush_notices(self) -> None:
        if self._notices and not self.answering:
            self._begin_answer()
        for notice in self._notices:
            self.client.send_data(notice)
        self._notices.clear()

    # -- leases ------------------------------------------------------------------------------

    def _lease_now(self, message: Message) -> Servable | None:
        servable = self._resolve(message)
        if servable.model_id not in self._counts:
            counting = v2.counted(self.relay.services, servable, PROTOCOL)
            self._counts[servable.model_id] = counting, counting.__enter__()
        resident = self._residents.get(servable.key)
        if resident is not None and resident.state is not ModelState.LOADED:
            # Its model is leaving: our lease holds that up, and would be of no use for more.
            self.relay.services.scheduler.release(self._residents.pop(servable.key))
            resident = None
        connected = self._upstream is not None or self.relay.upstream.connection() is not None
        if resident is None and connected:
            resident = self.relay.services.scheduler.try_acquire(servable)
            if resident is not None:
                self._residents[servable.key] = resident
        if resident is not None and connected:
            return resident.servable
        self._waiting = True
        priority = self._terms(message)
        self.task = self.loop.create_task(self._wait(message, servable, priority))
        return None

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
        scheduler = self.relay.services.scheduler
        deadline = self.loop.time() + self.relay.request_timeout
        if self in self.relay.deadlines:
            deadline = min(deadline, self.deadline)
        if self._upstream is None:
            await self.relay.upstream.connected(deadline)
        resident = scheduler.try_acquire(servable)
        if resident is None:
            resident = await scheduler.wait_until_loaded(servable, deadline, priority)
        former = self._residents.pop(servable.key, None)
        if former is not None:
            scheduler.release(former)
        self._residents[servable.key] = resident
        if self._upstream is None:  # it may have been lost meanwhile
            await self.relay.upstream.connected(deadline)
        return resident.servable

    def _open(self, message: Message, leased: Servable) -> None:
        if self._upstream is None:
            super()._open(message, leased)
        else:
            self._leased, self._leased_at = leased, time.time()
            self._prefix = message.address(leased)

    # -- answers -----------------------------------------------------------------------------

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None:
        super().on_headers(stream, block, end=end)
        if not self.done and not end and not self.answering:
            self._begin_answer()  # clients may wait for them before they go on

    def _answer_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if self._notices and stream is self._upstream:
            self._answer_with_notices(stream, data, end=end)
            return
        self._answers.pass_on(data)
        super()._answer_data(stream, data, end=end)

    def _answer_with_notices(self, stream: Stream, data: bytes, *, end: bool) -> None:
        cut = self._answers.next_boundary(data)
        self._answers.pass_on(data[:cut])
        super()._answer_data(stream, data[:cut], end=False)
        if self._answers.between:
            self._flush_notices()
        self._answers.pass_on(data[cut:])
        super()._answer_data(stream, data[cut:], end=end)

    def note_status(self, code: int) -> None:
        for _, outcome in self._counts.values():
            if code:
                outcome.error_code = outcome.error_code or "INFERENCE_FAILED"

    def _try_again(self, reason: str, *, untouched: bool = False) -> bool:
        for resident in self._residents.values():
            self.relay.services.suspect(resident.servable)
        return False  # which of its requests had been answered is not known

    # -- the end -----------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        if not self.done:
            for _, outcome in self._counts.values():
                outcome.error_code = getattr(error, "code", "INTERNAL_ERROR")
        super().fail(error)

    def _let_go(self) -> None:
        super()._let_go()
        residents, self._residents = self._residents, {}
        for resident in residents.values():
            self.relay.services.scheduler.release(resident)

    def end(self, code: int, text: str = "") -> None:
        if self.done:
            return
        super().end(code, text)
        for counting, outcome in self._counts.values():
            if code == status.CANCELLED and outcome.error_code is None:
                outcome.error_code = status.CANCELLED_CODE
            counting.__exit__(None, None, None)


class _Boundaries:
    """Where messages end in a stream of answers, of which only the prefixes are looked at.

    Attributes:
        between: what was passed on ends with a message.
    """

    __slots__ = ("_left", "_prefix")

    def __init__(self) -> None:
        self._prefix = b""
        self._left = 0

    @property
    def between(self) -> bool:
        return not self._prefix and not self._left

    def pass_on(self, data: bytes) -> None:
        """Look at bytes that are sent to the client."""
        at = 0
        while at < len(data):
            at = self._pass(data, at)

    def next_boundary(self, data: bytes) -> int:
        """Place in `data` after which the message that is under way has ended; its end at most."""
        probe = _Boundaries()
        probe._prefix, probe._left = self._prefix, self._left
        at = 0
        while at < len(data):
            at = probe._pass(data, at)
            if probe.between:
                return at
        return len(data)

    def _pass(self, data: bytes, at: int) -> int:
        if self._left:
            step = min(self._left, len(data) - at)
            self._left -= step
            return at + step
        needed = PREFIX_SIZE - len(self._prefix)
        self._prefix += data[at : at + needed]
        if len(self._prefix) == PREFIX_SIZE:
            self._left = int.from_bytes(self._prefix[1:], "big")
            self._prefix = b""
        return min(at + needed, len(data))
