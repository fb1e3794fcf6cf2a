"""A request on a stream, on its way to Triton: told to have an end that can be seen.

Triton marks the last answer to a request (`triton_final_response`), but a decoupled model may end
without an answer that could carry the mark. With the request's parameter
`triton_enable_empty_final_response` Triton then sends an empty one. Where the client has not asked
for it, we do, and keep that answer from it (`answers.py`).

Which ones those are is told by the model's version: in what its frontend makes itself, Triton
repeats the request's spelling of it, in what the model has answered it writes the number. So our
requests say `01` for version 1. An empty answer of the model's own, or one that the client has
asked for, says `1`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput
from controlplane.gateway import wire
from controlplane.gateway.grpc_relay.answers import flag_of
from controlplane.gateway.grpc_relay.message import Message
from controlplane.gateway.infer_scan import InferScan

if TYPE_CHECKING:
    from controlplane.registry.model import Servable

_PARAMETERS = 4  # field of ModelInferRequest
_ASKS = b"triton_enable_empty_final_response"
_SEQUENCE_ID, _SEQUENCE_END = b"sequence_id", b"sequence_end"
_ASK = wire.bytes_field(
    _PARAMETERS,
    wire.bytes_field(1, _ASKS) + wire.bytes_field(2, wire.bool_field(1, value=True)),
)
# Ids that mean no sequence: the number 0 and the empty text, as InferParameter spells them.
_NO_SEQUENCE = (b"", b"\x10\x00", b"\x1a\x00")


class StreamScan(InferScan):
    """What else must be known of a request on a stream.

    Attributes:
        asks: the client says itself whether it wants an empty last answer.
        sequence: the InferParameter with the id of the sequence it belongs to; empty for none.
        ends_sequence: it is the sequence's last request.
    """

    __slots__ = ("asks", "ends_sequence", "sequence")

    def __init__(self) -> None:
        super().__init__()
        self.asks = self.ends_sequence = False
        self.sequence = b""

    def _parameter(self, entry: bytes) -> None:
        super()._parameter(entry)
        if _ASKS not in entry and b"sequence_" not in entry:
            return
        key = value = b""
        for field in wire.fields(entry):
            if field.number == 1:
                key = entry[field.start : field.end]
            elif field.number == 2 and field.wire_type == wire.LENGTH:
                value = entry[field.start : field.end]
        if key == _ASKS:
            # "No" is what we may overrule; what is no bool at all is for Triton to refuse.
            self.asks = flag_of(value) is not False
        elif key == _SEQUENCE_ID:
            self.sequence = b"" if value in _NO_SEQUENCE else value
        elif key == _SEQUENCE_END:
            self.ends_sequence = flag_of(value) is True


class StreamMessage(Message):
    """A request on a stream.

    Attributes:
        said: what it says, `scan` with the rest.
        silenced: its empty last answer, if it gets one, is not for the client.
    """

    __slots__ = ("said", "silenced")

    def __init__(self, prefix: bytes, encoding: str, limit: int) -> None:
        super().__init__(prefix, encoding, limit, None)
        self.scan = self.said = StreamScan()
        self.silenced = False

    def feed(self, data: bytes) -> None:
        """As `Message.feed`."""
        super().feed(data)
        if self.silenced and self.said.asks:
            raise InvalidInput("The request asks for its last answer after its tensors have begun.")

    def address(self, servable: Servable) -> bytes:
        """As `Message.address`."""
        prefix = super().address(servable)
        self.silenced = servable.form.decoupled and not self.said.asks
        if not self.silenced:
            return prefix
        ask = _ask(servable.triton_version)
        self._tail += ask
        size = int.from_bytes(prefix[1:], "big") + len(ask)
        return prefix[:1] + size.to_bytes(4, "big")


@lru_cache(maxsize=256)
def _ask(version: int) -> bytes:
    return wire.text_field(wire.MODEL_VERSION, f"0{version}") + _ASK
