"""What all calls share, and which kind of call a method is."""

from __future__ import annotations

import zlib
from functools import partial
from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput
from controlplane.gateway.errors import BodyTooLarge
from controlplane.gateway.grpc_relay import local, status
from controlplane.gateway.grpc_relay.calls import AnsweredCall, Call
from controlplane.gateway.grpc_relay.deadlines import Deadlines
from controlplane.gateway.grpc_relay.headers import encode
from controlplane.gateway.grpc_relay.heads import SERVICE, request_head
from controlplane.gateway.grpc_relay.infer import InferCall, Tails, pass_whole
from controlplane.gateway.grpc_relay.limits import RetentionBudget
from controlplane.gateway.grpc_relay.message import inflater
from controlplane.gateway.grpc_relay.outbox import Outbox
from controlplane.gateway.grpc_relay.relayed import RelayedCall
from controlplane.gateway.grpc_relay.server import Door
from controlplane.gateway.grpc_relay.streaming import StreamingCall
from controlplane.gateway.grpc_relay.tally import Tally
from controlplane.gateway.grpc_relay.upstream import Upstream
from controlplane.gateway.grpc_relay.vigil import Vigil
from controlplane.gateway.infer_scan import KnownHeads

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.stream import Owner, Stream
    from controlplane.gateway.services import Services

_RETAINED = 64 * 1024 * 1024  # bytes of requests that are kept for a second try
_UNSUPPORTED_MEDIA = encode(((b":status", b"415"), (b"content-type", b"text/plain")))
_RELAYED: dict[str, type[RelayedCall]] = {
    "ModelInfer": InferCall,
    "ModelStreamInfer": StreamingCall,
    "ModelMetadata": RelayedCall,
    "ModelConfig": RelayedCall,
}


class Relay:
    """The gRPC gateway's data plane."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.request_timeout = services.settings.request_timeout
        self.max_inflated = services.settings.max_request_bytes
        # Asked once: even to be told that nobody listens costs a request a percent or two.
        self.logs_successes = services.settings.log_level == "DEBUG"
        self.retention = RetentionBudget(_RETAINED)
        self.finals_are_marked = False  # Triton has marked an answer of a stream as last, or as not
        self.known_heads = KnownHeads()
        self.tails = Tails()
        self.deadlines = Deadlines()
        self.vigil = Vigil()
        self.tally = Tally()
        self.outbox = Outbox()
        self.upstream = Upstream(lambda: services.server.endpoints.grpc_url, self.outbox)
        self._door = Door(self._accept, partial(pass_whole, self), self.outbox)

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port cannot be had.
        """
        return await self._door.open(host, port)

    async def close(self, grace: float) -> None:
        """Take no new calls, let the running ones end for `grace` seconds, then cut them off."""
        await self._door.close(grace)
        await self.upstream.close()
        self.deadlines.close()
        self.vigil.close()
        self.tally.publish()

    def inflate(self, message: bytes, encoding: str, limit: int) -> bytes:
        """A small compressed message, whole.

        Raises:
            InvalidInput: its compression is unknown or broken.
            BodyTooLarge: it becomes larger than `limit`.
        """
        try:
            plain = inflater(encoding).decompress(message, limit + 1)
        except zlib.error as error:
            raise InvalidInput(f"The compressed message is malformed: {error}.") from None
        if len(plain) > limit:
            raise BodyTooLarge(limit)
        return plain

    def _accept(self, stream: Stream, block: Block) -> Owner:
        head = request_head(block)
        kind = _RELAYED.get(head.method)
        if head.fault:
            refusal = Refusal(self, stream, head)
            refusal.fail(InvalidInput(head.fault))
            return refusal
        if kind is not None and head.is_grpc:
            return kind(self, stream, head)
        answer = local.ANSWERS.get(head.method)
        if answer is not None and head.is_grpc:
            return AnsweredCall(self, stream, head, answer)
        call = Refusal(self, stream, head)
        if not head.is_grpc:
            call.finish(status.UNIMPLEMENTED, _UNSUPPORTED_MEDIA, "not a gRPC call")
        else:
            text = f"There is no method {head.path} here; {SERVICE} is served."
            call.answer_status(status.UNIMPLEMENTED, text)
        return call


class Refusal(Call):
    """A call that has been answered before anything of it came in."""

    __slots__ = ()

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None: ...
