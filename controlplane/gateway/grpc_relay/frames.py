"""HTTP/2 frames as bytes (RFC 9113 §4 and §6): numbers, limits, writing, and how one may be wrong.

Reading is in `connection.py`, in one loop, because every request passes through it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
LAST_HEADERS = END_HEADERS | END_STREAM
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
# The least that every peer takes; we never announce another, so no frame of ours or theirs that
# is under way holds up the other streams for longer.
FRAME_SIZE = 16_384
LARGEST_FRAME_SIZE = 2**24 - 1

_HEAD = struct.Struct(">HBBBI")  # length (16 + 8 bits), type, flags, stream
_SETTING = struct.Struct(">HI")
_GOAWAY = struct.Struct(">II")
_NUMBER = struct.Struct(">I")
_CREDIT = b"\0\0\4\x08\0"  # how a WINDOW_UPDATE begins
unpack_head = _HEAD.unpack_from
HEAD_SIZE = _HEAD.size


class ProtocolViolation(Exception):
    """The peer broke HTTP/2; the connection ends with GOAWAY and this code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class GoAway(NamedTuple):
    """A GOAWAY's content: streams above `last_stream` were not looked at."""

    last_stream: int
    code: int


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame; the payload must fit the peer's MAX_FRAME_SIZE."""
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a SETTINGS frame, in their order.

    Raises:
        ProtocolViolation: its length or a value is impossible (RFC 9113 §6.5).
    """
    if len(payload) % _SETTING.size:
        raise ProtocolViolation(FRAME_SIZE_ERROR, "SETTINGS has an impossible length")
    values = list(_SETTING.iter_unpack(payload))
    for key, value in values:
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ProtocolViolation(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
        if key == MAX_FRAME_SIZE and not FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
            raise ProtocolViolation(PROTOCOL_ERROR, "MAX_FRAME_SIZE is impossible")
        if key == ENABLE_PUSH and value > 1:
            raise ProtocolViolation(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
    return values


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """An RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def goaway(last_stream: int, code: int, text: str = "") -> bytes:
    """A GOAWAY frame with a text for whoever debugs the peer."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream, code) + text.encode()[:200])


def read_goaway(payload: bytes) -> GoAway:
    """A GOAWAY's last stream and code.

    Raises:
        ProtocolViolation: it is too short.
    """
    if len(payload) < _GOAWAY.size:
        raise ProtocolViolation(FRAME_SIZE_ERROR, "GOAWAY is too short")
    last_stream, code = _GOAWAY.unpack_from(payload)
    return GoAway(last_stream & MAX_WINDOW, code)


def read_number(payload: bytes, what: str) -> int:
    """The one 32-bit number that RST_STREAM and WINDOW_UPDATE consist of.

    Raises:
        ProtocolViolation: it is not 4 bytes.
    """
    if len(payload) != _NUMBER.size:
        raise ProtocolViolation(FRAME_SIZE_ERROR, f"{what} has an impossible length")
    return int(_NUMBER.unpack(payload)[0])


def header_frames(stream_id: int, block: bytes, *, end: bool, limit: int) -> bytes:
    """HEADERS and, for a long block, CONTINUATION frames that nothing may come between."""
    flags = END_STREAM if end else 0
    length = len(block)
    if length <= limit:
        flags |= END_HEADERS
        return _HEAD.pack(length >> 8, length & 0xFF, HEADERS, flags, stream_id) + block
    pieces = [block[at : at + limit] for at in range(0, len(block), limit)]
    frames = [frame(HEADERS, flags, stream_id, pieces[0])]
    frames += [frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]))
    return b"".join(frames)


def skip_credit(data: bytes, at: int, stream_id: int) -> tuple[int, int]:
    """Increment of a stream's WINDOW_UPDATE that begins there, if one does, and where it ends.

    The increment 0, which is an error, and one of half the largest window or more are left alone.
    """
    if data[at : at + 5] != _CREDIT or len(data) < at + HEAD_SIZE + 4:
        return 0, at
    stream, increment = _GOAWAY.unpack_from(data, at + 5)
    if stream != stream_id or not 0 < increment < MAX_WINDOW >> 1:
        return 0, at
    return increment, at + HEAD_SIZE + 4


def whole_frame(data: bytes, at: int, kind: int, flags: int, stream_id: int) -> tuple[bytes, int]:
    """Content of a frame that begins there, with just these flags, and where it ends.

    Nothing, and `at`, where another begins, or not all of it is here.
    """
    start = at + HEAD_SIZE
    if len(data) < start:
        return b"", at
    high, low, its_kind, its_flags, its_stream = unpack_head(data, at)
    length = high << 8 | low
    end = start + length
    if its_kind != kind or its_flags != flags or its_stream & MAX_WINDOW != stream_id:
        return b"", at
    if length > FRAME_SIZE or end > len(data):
        return b"", at
    return data[start:end], end


def whole_request(stream_id: int, head: bytes, data: bytes) -> bytes:
    """HEADERS, and the DATA that ends the stream, each fitting a frame."""
    pack, first, size = _HEAD.pack, len(head), len(data)
    return b"".join(
        (
            pack(first >> 8, first & 0xFF, HEADERS, END_HEADERS, stream_id),
            head,
            pack(size >> 8, size & 0xFF, DATA, END_STREAM, stream_id),
            data,
        )
    )


def whole_answer(stream_id: int, head: bytes, data: bytes, trailers: bytes) -> bytes:
    """HEADERS, DATA and the HEADERS that end the stream, each fitting a frame."""
    pack, size = _HEAD.pack, len(data)
    first, last = len(head), len(trailers)
    return b"".join(
        (
            pack(first >> 8, first & 0xFF, HEADERS, END_HEADERS, stream_id),
            head,
            pack(size >> 8, size & 0xFF, DATA, 0, stream_id),
            data,
            pack(last >> 8, last & 0xFF, HEADERS, LAST_HEADERS, stream_id),
            trailers,
        )
    )


def without_padding(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding.

    Raises:
        ProtocolViolation: the padding is longer than the frame.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolViolation(PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
