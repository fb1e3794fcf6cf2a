"""ModelInfer: a relayed call that is counted, and whose failures make its model be looked at.

Most requests come whole and like others before them, for a model that is loaded: those are sent on
in one step (`_pass_at_once`). All others go the way of `relayed.py`; what has been sent in one step
becomes a message of that way when it must be sent again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from controlplane.errors import ModelMoraError
from controlplane.gateway import v2
from controlplane.gateway.grpc_relay import status
from controlplane.gateway.grpc_relay.message import PREFIX_SIZE, prefix_of
from controlplane.gateway.grpc_relay.relayed import RelayedCall
from controlplane.gateway.wire import Names, names_tail

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.message import Message
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.stream import Stream
    from controlplane.registry.model import Servable

PROTOCOL = "v2_grpc"


class InferCall(RelayedCall):
    """An inference: counted, and its failures looked at."""

    __slots__ = ("_outcome", "_whole")

    def __init__(self, relay: Relay, client: Stream, head: RequestHead) -> None:
        super().__init__(relay, client, head)
        self._outcome: v2.Outcome | None = None  # from when the model is known
        self._whole = b""  # a request that was passed at once, kept for a second try

    # -- in one step -------------------------------------------------------------------------

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if stream is not self.client:
            self._answer_data(stream, data, end=end)
            return
        if not end or self._message is not None or self.done:
            super().on_data(stream, data, end=end)
            return
        if self._pending:
            data, self._pending = self._pending + data, b""
        try:
            passed = self._pass_at_once(data)
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            self.fail(error)
            return
        if not passed:
            super().on_data(stream, data, end=end)
            self._learn(data)

    def _learn(self, data: bytes) -> None:
        message = self._message
        if message is not None and not self.done:  # it was read, and nothing was wrong
            self.relay.known_heads.learn(data, PREFIX_SIZE, message.scan)

    def _pass_at_once(self, data: bytes) -> bool:
        """Send on a whole request; False where it needs more than that."""
        relay, connection = self.relay, self.relay.upstream.connection()
        size = len(data) - PREFIX_SIZE
        if connection is None or data[:PREFIX_SIZE] != prefix_of(size):
            return False
        names = relay.known_heads.find(data, PREFIX_SIZE)
        if names is None or not relay.retention.take(len(data)):
            return False
        self._whole = data
        servable = self._resolve_names(names)
        lease = relay.services.scheduler.lease(servable, deadline=self.deadline)
        leased = lease.try_enter()
        if leased is None:
            self._drop_whole()
            return False
        self._lease, self._leased, self._leased_at = lease, leased, time.time()
        tail = names_tail(names, Names(leased.triton_name, str(leased.triton_version)))
        self._upstream = connection.open(self, self.head.forwarded)
        if tail:
            data = b"".join((prefix_of(size + len(tail)), data[PREFIX_SIZE:], tail))
        self._upstream.send_data(data, end=True)
        return True

    def _drop_whole(self) -> None:
        if self._whole:
            self.relay.retention.give(len(self._whole))
            self._whole = b""

    def _begin_answer(self) -> None:
        super()._begin_answer()
        self._drop_whole()

    def _try_again(self, reason: str, *, untouched: bool = False) -> bool:
        if whole := self._whole:
            self._drop_whole()
            message = self._message = self._begin(whole[:PREFIX_SIZE])
            message.feed(message.cut(whole[PREFIX_SIZE:])[0])
        return super()._try_again(reason, untouched=untouched)

    # -- counting ----------------------------------------------------------------------------

    def _step(self) -> bool:
        try:
            return super()._step()
        except ModelMoraError:
            # The name comes first: a request that is refused for its tensors counts for its model.
            if self._outcome is None and self._message is not None:
                self._count_refused(self._message)
            raise

    def _count_refused(self, message: Message) -> None:
        try:
            self._resolve(message)
        except ModelMoraError:  # the first error is the one that counts
            return

    def _resolve_names(self, names: Names) -> Servable:
        servable = super()._resolve_names(names)
        if self._outcome is None:
            self._outcome = v2.Outcome(self.relay.services, servable, PROTOCOL)
        return servable

    def note_status(self, code: int) -> None:
        if code and self._leased is not None and self._outcome is not None:
            fault = code == status.INVALID_ARGUMENT
            v2.note_refusal(self.relay.services, self._leased, self._outcome, clients_fault=fault)

    def fail(self, error: Exception) -> None:
        if not self.done and self._outcome is not None:
            self._outcome.error_code = getattr(error, "code", "INTERNAL_ERROR")
        super().fail(error)

    def end(self, code: int, text: str = "") -> None:
        if self.done:
            return
        super().end(code, text)
        if (outcome := self._outcome) is not None:
            if code == status.CANCELLED and outcome.error_code is None:
                outcome.error_code = status.CANCELLED_CODE
            self.relay.outbox.afterwards(outcome.publish)
        self._drop_whole()
