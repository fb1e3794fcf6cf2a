"""One message of a client, on its way through: cut from the stream, read, readdressed.

A message is a length prefix (5 bytes: compressed or not, length) and protobuf. Its model's name
is changed by appending the name anew: of a repeated singular field every parser takes the last.
So the bytes themselves pass unchanged, and only the prefix is written again. Triton does not see a
message before its last byte: whatever is found wrong on the way keeps it from being run.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput
from controlplane.gateway import wire
from controlplane.gateway.errors import BodyTooLarge
from controlplane.gateway.infer_scan import InferScan

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.limits import RetentionBudget
    from controlplane.registry.model import Servable

_PREFIX = struct.Struct(">BI")
PREFIX_SIZE = _PREFIX.size
# What may be held of a message that does not name its model first. No known client sends such.
MAX_UNNAMED = 4 * 1024 * 1024
# What is kept of a request so that it can be sent once more.
MAX_KEPT = 4 * 1024 * 1024
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def prefix_of(size: int) -> bytes:
    """What comes before an uncompressed message of that many bytes."""
    return _PREFIX.pack(0, size)


class Message:
    """A client's message.

    Attributes:
        left: bytes of it that have not come in yet.
        scan: what is known of it.
        addressed: the names it is sent on with are fixed.
    """

    __slots__ = (
        "_held",
        "_inflater",
        "_kept",
        "_kept_size",
        "_limit",
        "_names",
        "_retention",
        "_size",
        "_tail",
        "addressed",
        "held_size",
        "left",
        "scan",
    )

    def __init__(
        self, prefix: bytes, encoding: str, limit: int, retention: RetentionBudget | None
    ) -> None:
        """
        Args:
            prefix: the 5 bytes before the message.
            encoding: what compressed messages of the call are compressed with.
            limit: the most bytes that a compressed one may become.
            retention: where bytes are taken to keep a copy for a second try; None keeps none.

        Raises:
            InvalidInput: its compression is unknown.
        """
        compressed, self.left = _PREFIX.unpack(prefix)
        self._size = 0
        self._inflater = inflater(encoding) if compressed else None
        self._limit = limit
        self.scan = InferScan()
        self._held: list[bytes] = []  # read, but not sent on
        self.held_size = 0
        self._retention = retention
        self._kept: list[bytes] | None = [] if retention is not None else None
        self._kept_size = 0
        self._names = wire.Names("", "")
        self._tail = b""
        self.addressed = False
        if compressed == 0:
            self._size = self.left

    @property
    def complete(self) -> bool:
        return not self.left

    @property
    def known(self) -> bool:
        """True when the model it is for is certain."""
        return not self.left or (self.scan.settled and self._inflater is None)

    @property
    def needs_window(self) -> int:
        """Bytes that must be let in before the model can be known, at most."""
        left: int = self.left
        return left if self._inflater is not None else min(left, MAX_UNNAMED)

    @property
    def unread(self) -> int:
        """Bytes of what was received that are still here; what was inflated has its own limit."""
        return 0 if self._inflater is not None else self.held_size

    @property
    def kept(self) -> bool:
        """True when all that has come in can be sent again."""
        return self._kept is not None

    def cut(self, data: bytes) -> tuple[bytes, bytes]:
        """Divide bytes that came in into those of this message and those behind it."""
        if len(data) > self.left:
            data, rest = data[: self.left], data[self.left :]
            self.left = 0
            return data, rest
        self.left -= len(data)
        return data, b""

    def feed(self, data: bytes) -> None:
        """Read the bytes that `cut` gave for it.

        Raises:
            InvalidInput, NotOffered: it must not be run.
            BodyTooLarge: it inflates to too much.
        """
        if self._inflater is not None:
            data = self._inflate(data)
            self._size += len(data)
        self.scan.feed(data)
        if not self.left:
            self.scan.finish()
        if self.addressed and self.scan.names != self._names:
            raise InvalidInput("The request names its model twice, after its tensors have begun.")
        self._held.append(data)
        self.held_size += len(data)
        if not self.known and self._inflater is None and self.held_size >= MAX_UNNAMED:
            raise InvalidInput("The request must name its model before its tensors.")
        self._keep(data)

    def address(self, servable: Servable) -> bytes:
        """Fix the names that it is sent on with; returns its first bytes.

        All that has been held follows with `take`.
        """
        self._names = self.scan.names
        ours = wire.Names(servable.triton_name, str(servable.triton_version))
        self._tail = wire.names_tail(self._names, ours)
        self.addressed = True
        return prefix_of(self._size + len(self._tail))

    def take(self, prefix: bytes = b"") -> bytes:
        """What may be sent on now, after `prefix`; the end of the message includes the names."""
        held, self._held, self.held_size = self._held, [], 0
        if not self.left and self._tail:
            held.append(self._tail)
            self._tail = b""
        return b"".join((prefix, *held))

    def rewind(self) -> None:
        """Begin again with what has been kept."""
        assert self._kept is not None
        self._held, self.held_size = list(self._kept), self._kept_size
        self.addressed = False

    def drop_kept(self) -> None:
        """Keep nothing any more."""
        if self._kept is not None and self._retention is not None:
            self._retention.give(self._kept_size)
            self._kept = None

    def _keep(self, data: bytes) -> None:
        if self._kept is None or self._retention is None:
            return
        if self._kept_size + len(data) > MAX_KEPT or not self._retention.take(len(data)):
            self.drop_kept()
            return
        self._kept_size += len(data)
        self._kept.append(data)

    def _inflate(self, data: bytes) -> bytes:
        assert self._inflater is not None
        room = self._limit - self._size
        try:
            plain = self._inflater.decompress(data, room + 1)
        except zlib.error as error:
            raise InvalidInput(f"The compressed message is malformed: {error}.") from None
        if len(plain) > room:
            raise BodyTooLarge(self._limit)
        if not self.left and not self._inflater.eof:
            raise InvalidInput("The compressed message is cut off.")
        return plain


def inflater(encoding: str) -> zlib._Decompress:
    """What decompresses one message.

    Raises:
        InvalidInput: the compression is unknown.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise InvalidInput(
            f"Messages compressed with {encoding!r} cannot be read: use gzip, deflate or none."
        )
    return zlib.decompressobj(wbits=bits)
