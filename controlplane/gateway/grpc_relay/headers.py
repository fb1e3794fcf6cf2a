"""Header blocks (HPACK, RFC 7541): each hop has its own compression, so streams may change hands.

What comes in is decoded by `hpack`, but a block that leaves the dynamic table alone means the same
until the table changes: a gRPC client's second call is a dictionary look-up. What goes out is
encoded without the dynamic table, so that it depends on nothing that was sent before and can be
kept beside the block it was made from.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hpack import Decoder, HPACKError
from hpack.table import HeaderTable

from controlplane.gateway.grpc_relay.frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    ProtocolViolation,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.gateway.grpc_relay.heads import RequestHead

HeaderFields = tuple[tuple[bytes, bytes], ...]

MAX_BLOCK = 64 * 1024  # of compressed bytes, and of what they decode to
_CACHED, _MAX_CACHED = 256, 2048  # blocks of a connection, bytes of a block
_STATIC = {field: index for index, field in enumerate(HeaderTable.STATIC_TABLE, 1)}
_STATIC_NAMES = {name: _STATIC[name, value] for name, value in reversed(HeaderTable.STATIC_TABLE)}


class Block:
    """Decoded headers, and what has been made of them.

    Attributes:
        encoded: the same headers in the form that needs no dynamic table.
        request: what the headers mean as a request; filled in by whoever reads it first.
    """

    def __init__(self, fields: HeaderFields) -> None:
        self.fields = fields
        self.request: RequestHead | None = None

    @cached_property
    def encoded(self) -> bytes:
        return encode(self.fields)

    @cached_property
    def is_success(self) -> bool:
        """Whether they are trailers of a call that went well."""
        return self.get(b"grpc-status") == b"0"

    @cached_property
    def _values(self) -> dict[bytes, bytes]:
        return dict(self.fields)

    def get(self, name: bytes) -> bytes | None:
        """The last value of a header."""
        return self._values.get(name)


class _Table(HeaderTable):
    """A dynamic table that tells when it has changed."""

    changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)

    def _shrink(self) -> None:
        self.changed = True
        super()._shrink()


class BlockReader:
    """Decodes the header blocks of one direction of a connection, in their order."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_BLOCK)
        self._table = _Table()
        self._decoder.header_table = self._table
        self._known: dict[bytes, Block] = {}

    def known(self, data: bytes) -> Block | None:
        """What a block means that has been read before and would be read the same now."""
        return self._known.get(data)

    def read(self, data: bytes) -> Block:
        """Decode one block.

        Raises:
            ProtocolViolation: it is malformed, or larger than MAX_BLOCK.
        """
        known = self._known.get(data)
        if known is not None:
            return known
        block = Block(self._decode(data))
        if self._table.changed or (data[:1] and data[0] & 0xE0 == 0x20):
            self._table.changed = False
            self._known.clear()
        elif len(data) <= _MAX_CACHED:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[data] = block
        return block

    def _decode(self, data: bytes) -> HeaderFields:
        try:
            decoded = self._decoder.decode(data, raw=True)
        except HPACKError as error:
            code = COMPRESSION_ERROR
            if "larger than" in str(error):
                code = ENHANCE_YOUR_CALM
            raise ProtocolViolation(code, f"a header block is malformed: {error}") from None
        except (IndexError, ValueError):
            raise ProtocolViolation(COMPRESSION_ERROR, "a header block is cut off") from None
        return tuple((bytes(name), bytes(value)) for name, value in decoded)


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as static indices where they are standard, else as never-indexed literals."""
    out = bytearray()
    for name, value in fields:
        if index := _STATIC.get((name, value)):
            out.append(0x80 | index)
            continue
        out += _integer(_STATIC_NAMES.get(name, 0), 4, 0x10)
        if name not in _STATIC_NAMES:
            out += _integer(len(name), 7, 0) + name
        out += _integer(len(value), 7, 0) + value
    return bytes(out)


def _integer(value: int, bits: int, first: int) -> bytes:
    """RFC 7541 §5.1: a number whose first byte shares its upper bits with flags."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
