"""ModelInfer: a relayed call that is counted, and whose failures make its model be looked at.

Most requests come whole and like others before them, for a model that is loaded, and so do their
answers: those are passed on in one step (`pass_whole`, `take_whole`). All others go the way of
`relayed.py`; what was sent in one step becomes a message of that way when it must be sent again.
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
    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.message import Message
    from controlplane.gateway.grpc_relay.relay import Relay
    from controlplane.gateway.grpc_relay.server import ClientConnection
    from controlplane.gateway.grpc_relay.stream import Stream
    from controlplane.lifecycle.lease import Lease
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

    def begin_whole(self, data: bytes, outcome: v2.Outcome, lease: Lease, upstream: Stream) -> None:
        """Take over a request that has come whole and has been sent on under `lease`."""
        self.model_id = outcome.servable.model_id
        self._outcome = outcome
        self._whole = data
        self._client_ended = True
        self._lease, self._leased, self._leased_at = lease, lease.servable, time.time()
        self._upstream = upstream

    def take_whole(self, stream: Stream, head: Block, data: bytes, trailers: Block) -> bool:
        client = self.client
        if stream is not self._upstream or self.answering or not trailers.is_success:
            return False
        ending = trailers.encoded + status.trace_trailer(self.trace_id)
        if not client.send_whole(head.encoded, data, ending):
            return False
        self.answering = stream.receive_ended = True
        stream.connection.forget(stream)
        self.end(status.OK)
        return True

    # -- step by step ------------------------------------------------------------------------

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        whole = end and stream is self.client and self._message is None and not self._pending
        super().on_data(stream, data, end=end)
        message = self._message
        if whole and message is not None and not self.done:  # it was read, nothing was wrong
            self.relay.known_heads.learn(data, PREFIX_SIZE, message.scan)

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

    def _resolve(self, message: Message) -> Servable:
        servable = super()._resolve(message)
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
            self.relay.tally.add(outcome)
        self._drop_whole()


def pass_whole(
    relay: Relay, client: ClientConnection, stream_id: int, head: RequestHead, data: bytes
) -> Stream | None:
    """Send on a request that has come whole, if that can be done at once.

    Args:
        data: its one message, with gRPC's prefix.

    Returns:
        The client's stream; None where the request is unlike those before it, wrong, or must wait.
    """
    began, triton = time.perf_counter(), relay.upstream.connection()
    if triton is None or data[:PREFIX_SIZE] != prefix_of(len(data) - PREFIX_SIZE):
        return None
    names = relay.known_heads.find(data, PREFIX_SIZE)
    if names is None:
        return None
    services = relay.services
    try:
        servable = services.store.servable(names.model_name, names.model_version or None)
    except Exception:  # noqa: BLE001 whatever it is: it is met, and told, on the other way
        return None
    if not relay.retention.take(len(data)):
        return None
    lease = services.scheduler.lease_at_once(servable)
    if lease is None:
        relay.retention.give(len(data))
        return None
    addressed = _addressed(data, relay.tails.find(names, lease.servable))
    upstream_id = triton.send_whole(head.forwarded, addressed)
    if not upstream_id:
        relay.retention.give(len(data))
        lease.leave()
        return None
    # Triton has it; what follows is done while it computes.
    stream = client.begin_whole(stream_id, len(data))
    stream.owner = call = InferCall(relay, stream, head)
    upstream = triton.begin_whole(call, upstream_id, len(addressed))
    call.begin_whole(data, v2.Outcome(services, servable, PROTOCOL, began), lease, upstream)
    return stream


class Tails:
    """What makes a request's names those that its model has in Triton, of those asked before."""

    _MOST = 1024

    def __init__(self) -> None:
        self._known: dict[Names, tuple[Servable, bytes]] = {}

    def find(self, names: Names, leased: Servable) -> bytes:
        """What to append to a request with these names."""
        known = self._known.get(names)
        if known is not None and known[0] is leased:
            return known[1]
        if len(self._known) >= self._MOST:
            self._known.clear()
        tail = names_tail(names, Names(leased.triton_name, str(leased.triton_version)))
        self._known[names] = leased, tail
        return tail


def _addressed(data: bytes, tail: bytes) -> bytes:
    """A whole request, with gRPC's prefix, under its model's name in Triton."""
    if not tail:
        return data
    size = len(data) - PREFIX_SIZE + len(tail)
    return b"".join((prefix_of(size), data[PREFIX_SIZE:], tail))
