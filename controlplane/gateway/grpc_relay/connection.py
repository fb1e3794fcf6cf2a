"""One HTTP/2 connection (RFC 9113), client's or server's end: frames in, frames out, streams.

A malformed frame raises ProtocolViolation, which ends this connection with GOAWAY and nothing
else. `server.py` and `upstream.py` add what the two ends do differently.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, cast

import structlog

from controlplane.gateway.grpc_relay import frames
from controlplane.gateway.grpc_relay.frames import ProtocolViolation
from controlplane.gateway.grpc_relay.headers import MAX_BLOCK, BlockReader
from controlplane.gateway.grpc_relay.limits import Allowance

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.outbox import Outbox
    from controlplane.gateway.grpc_relay.stream import Stream

log = structlog.get_logger(__name__)

# Credit of the connection as a whole is given back as soon as bytes are here: a stream that is
# held must not starve its neighbours. What bounds memory are the streams' own windows.
CONNECTION_WINDOW = 2**30
_TURN = 64 * 1024  # bytes that a blocked stream may send before the next one has its turn
_MAX_CONTINUATIONS = 64
# Credit and pings follow nearly every call; another call takes more bytes than these.
TRIFLES = 64
_GOODBYE = 1.0  # seconds for the peer to hang up after GOAWAY
# Frames that cost us work and carry nothing: pings, settings, empty DATA, ...
_IDLE_BURST, _IDLE_RATE = 10_000, 1_000.0
# What may wait in the transport before a peer that sends without reading is cut off.
_MAX_UNREAD = 64 * 1024 * 1024


class Connection(asyncio.Protocol, ABC):
    """Frames and flow control of either end.

    Attributes:
        window: what a stream's peer may send at first; announced as INITIAL_WINDOW_SIZE.
        peer_window, peer_frame_size: what the peer announced.
        send_window: bytes that may be sent on all streams together.
        blocked: streams whose data waits for a window or for the socket, in order.
        paused: the socket takes no more for now.
    """

    def __init__(self, window: int, outbox: Outbox) -> None:
        self.window = window
        self._outbox = outbox
        self.peer_window = self.send_window = frames.DEFAULT_WINDOW
        self.peer_frame_size = frames.FRAME_SIZE
        self.peer_streams = 2**31
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[Stream, None] = {}
        self.paused = False
        self.closed = False
        self.last_peer_stream = 0
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._flush_is_due = False
        self._buffer = b""
        self._received = 0  # since the connection's window was last renewed
        self._headers = BlockReader()
        self._open_block: tuple[int, int, list[bytes]] | None = None  # stream, flags, fragments
        self._idle = Allowance(_IDLE_BURST, _IDLE_RATE)
        self._read = self._read_frames
        self._readers = (
            self._data,
            self._header_start,
            self._priority,
            self._rst_stream,
            self._settings,
            self._push_promise,
            self._ping,
            self._goaway,
            self._window_update,
            self._continuation,
        )

    # -- what an end of the connection adds --------------------------------------------------

    @abstractmethod
    def on_block(self, stream_id: int, block: Block, *, end: bool) -> None:
        """Headers or trailers have come in."""

    @abstractmethod
    def take_whole(self, stream_id: int, block: Block, data: bytes, at: int) -> int:
        """A call, or an answer, all of which is in `data`: dealt with in one step.

        Most are of this kind, and going through frame by frame takes twice the time. `block` has
        been read, the frames behind it begin at `at`.

        Returns:
            Where its last frame ends; 0 where anything is out of the ordinary: then nothing has
            been done, and it is taken frame by frame.
        """

    @abstractmethod
    def on_goaway(self, last_stream: int) -> None:
        """The peer takes no more streams than up to `last_stream`."""

    def on_stream_ended(self) -> None:
        """One stream less."""

    @abstractmethod
    def is_idle_stream(self, stream_id: int) -> bool:
        """True for a stream that has not begun: frames on it are an error, on old ones not."""

    # -- transport ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        # uvloop sends at the end of the loop's turn but for what is beyond its limit, at once. What
        # is written has been joined by the outbox, and waits in the streams where it must wait.
        self._transport.set_write_buffer_limits(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose_streams(str(exc) if exc else "the connection was closed")

    def _lose_streams(self, reason: str) -> None:
        self.closed = True
        self._out.clear()
        self.blocked.clear()
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.closed = True
        for stream in streams:
            stream.owner.on_lost(stream, reason)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pump()

    def write(self, data: bytes) -> None:
        """Send frames, together with all others of this turn of the event loop."""
        self._out.append(data)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._outbox.add(self)

    def send(self, data: bytes) -> None:
        """Send frames at once, unless others of what is being read will soon join them.

        A call that is alone is thus on its way before the books of it are kept.
        """
        transport = self._transport
        if self._outbox.more or self._out or transport is None or self.closed:
            self.write(data)
        else:
            transport.write(data)

    def flush(self) -> None:
        """Hand what has been written to the socket."""
        self._flush_is_due = False
        out, self._out = self._out, []
        transport = self._transport
        if transport is None or self.closed or not out:
            return
        if len(out) == 1:
            transport.write(out[0])
        else:
            transport.write(b"".join(out))
        if self.paused and transport.get_write_buffer_size() > _MAX_UNREAD:
            transport.abort()

    def close(self, code: int = frames.NO_ERROR, text: str = "") -> None:
        """Say goodbye and close; streams that still run are lost."""
        transport = self._transport
        if self.closed or transport is None or transport.is_closing():
            return
        self.write(frames.goaway(self.last_peer_stream, code, text))
        self.flush()
        self._lose_streams(text or "the connection was closed")
        # Closing at once, with bytes unread, would throw away the goodbye as well (RFC 9293
        # §3.10.7.4 answers such bytes with a reset): the peer has a moment to close first.
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(_GOODBYE, transport.abort)

    def abort(self) -> None:
        """Close without a word."""
        if self._transport is not None:
            self._transport.abort()

    # -- frames in ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        if self._buffer:
            data = self._buffer + data
        outbox = self._outbox
        outbox.is_filled = True
        try:
            self._buffer = self._read(data)
        except ProtocolViolation as violation:
            log.info("http/2 violated", reason=violation.text, code=violation.code)
            self._buffer = b""
            self.close(violation.code, violation.text)
        except Exception:  # a bug of ours ends this connection, never the process
            log.exception("http/2 connection broke")
            self._buffer = b""
            self.close(frames.INTERNAL_ERROR)
        finally:
            outbox.is_filled = False
            if outbox.due:
                outbox.flush()

    def _read_frames(self, data: bytes) -> bytes:
        """Take the whole frames; returns the bytes of the last, unfinished one."""
        at, size = 0, len(data)
        while size - at >= frames.HEAD_SIZE and not self.closed:
            high, low, kind, flags, stream_id = frames.unpack_head(data, at)
            length = high << 8 | low
            if length > frames.FRAME_SIZE:
                raise ProtocolViolation(frames.FRAME_SIZE_ERROR, "a frame is too long")
            start = at + frames.HEAD_SIZE
            if size - start < length:
                break
            at = start + length
            stream_id &= frames.MAX_WINDOW
            if self._open_block is not None and kind != frames.CONTINUATION:
                raise ProtocolViolation(frames.PROTOCOL_ERROR, "a header block is interrupted")
            if (
                kind == frames.HEADERS
                and flags | frames.END_STREAM == frames.LAST_HEADERS
                and stream_id
            ):
                # Nearly all headers: in one frame, without padding or priority.
                block = self._headers.read(data[start:at])
                end = flags != frames.END_HEADERS
                if not end and (taken := self.take_whole(stream_id, block, data, at)):
                    at = taken
                else:
                    self.on_block(stream_id, block, end=end)
            elif kind < len(self._readers):
                self._readers[kind](flags, stream_id, data[start:at])
            else:  # unknown types are ignored (RFC 9113 §4.1), but not without end
                self._spend()
        return data[at:] if at else data

    def _spend(self) -> None:
        if not self._idle.take(self._loop.time()):
            raise ProtocolViolation(frames.ENHANCE_YOUR_CALM, "too many frames without content")

    def _stream(self, stream_id: int, what: str) -> Stream | None:
        """The stream a frame is for; None for one that has ended."""
        stream = self.streams.get(stream_id)
        if stream is None and (not stream_id or self.is_idle_stream(stream_id)):
            raise ProtocolViolation(frames.PROTOCOL_ERROR, f"{what} on stream {stream_id}")
        return stream

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self.count_received(size)
        stream = self.streams.get(stream_id) or self._stream(stream_id, "DATA")
        end = flags & frames.END_STREAM != 0
        if not size and not end:
            self._spend()
        if stream is None:  # under way when it was reset; its sender only wastes its own time
            return
        if stream.receive_ended:
            raise ProtocolViolation(frames.STREAM_CLOSED, "DATA after the end of its stream")
        stream.received += size
        if stream.received > stream.granted:
            raise ProtocolViolation(frames.FLOW_CONTROL_ERROR, "DATA beyond its stream's window")
        if flags & frames.PADDED:
            payload = frames.without_padding(flags, payload)
        if end:
            self.received_end(stream)
        stream.owner.on_data(stream, payload, end=end)

    def count_received(self, size: int) -> None:
        """Take note of bytes of DATA, and give credit for them when it is time to."""
        self._received += size
        if self._received > CONNECTION_WINDOW >> 1:
            self.write(frames.window_update(0, self._received))
            self._received = 0

    def received_end(self, stream: Stream) -> None:
        """Note that the peer has ended its direction of a stream."""
        stream.receive_ended = True
        if stream.send_ended:
            self.forget(stream)

    def _header_start(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "HEADERS on stream 0")
        payload = frames.without_padding(flags, payload)
        if flags & frames.HAS_PRIORITY:
            if len(payload) < 5:
                raise ProtocolViolation(frames.FRAME_SIZE_ERROR, "HEADERS is too short")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._block(stream_id, flags, payload)
        else:
            self._open_block = (stream_id, flags, [payload])

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._open_block is None or self._open_block[0] != stream_id:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, first_flags, fragments = self._open_block
        fragments.append(payload)
        size = sum(len(fragment) for fragment in fragments)
        if size > MAX_BLOCK or len(fragments) > _MAX_CONTINUATIONS:
            raise ProtocolViolation(frames.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            self._open_block = None
            self._block(stream_id, first_flags, b"".join(fragments))

    def _block(self, stream_id: int, flags: int, data: bytes) -> None:
        end = bool(flags & frames.END_STREAM)
        self.on_block(stream_id, self._headers.read(data), end=end)

    def _priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id or len(payload) != 5:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "PRIORITY is malformed")
        self._spend()

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        code = frames.read_number(payload, "RST_STREAM")
        stream = self._stream(stream_id, "RST_STREAM")
        if stream is None:
            self._spend()
        else:
            self.forget(stream)
            stream.owner.on_reset(stream, code)

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._spend()
        if flags & frames.ACK:
            if payload:
                raise ProtocolViolation(frames.FRAME_SIZE_ERROR, "an ACK of SETTINGS has content")
            return
        for key, value in frames.read_settings(payload):
            self._apply(key, value)
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.pump()

    def _apply(self, key: int, value: int) -> None:
        if key == frames.INITIAL_WINDOW_SIZE:
            change, self.peer_window = value - self.peer_window, value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > frames.MAX_WINDOW:
                    raise ProtocolViolation(frames.FLOW_CONTROL_ERROR, "a window overflows")
        elif key == frames.MAX_FRAME_SIZE:
            # More would only make each of our writes larger.
            self.peer_frame_size = min(value, 4 * frames.FRAME_SIZE)
        elif key == frames.MAX_CONCURRENT_STREAMS:
            self.peer_streams = value

    def _push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ProtocolViolation(frames.PROTOCOL_ERROR, "PUSH_PROMISE was not allowed")

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ProtocolViolation(frames.FRAME_SIZE_ERROR, "PING has an impossible length")
        self._spend()
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "GOAWAY on a stream")
        self._spend()
        self.on_goaway(frames.read_goaway(payload).last_stream)

    def _window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        increment = frames.read_number(payload, "WINDOW_UPDATE") & frames.MAX_WINDOW
        if not increment:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        if not stream_id:
            self.send_window += increment
            if self.send_window > frames.MAX_WINDOW:
                raise ProtocolViolation(frames.FLOW_CONTROL_ERROR, "the window overflows")
            self.pump()
            return
        stream = self._stream(stream_id, "WINDOW_UPDATE")
        if stream is None:
            return
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            raise ProtocolViolation(frames.FLOW_CONTROL_ERROR, "a window overflows")
        if stream.queue:
            stream.pump(_TURN)

    # -- streams -----------------------------------------------------------------------------

    def pump(self) -> None:
        """Let blocked streams send, in turns, while the socket and the window have room."""
        progress = True
        while self.blocked and progress and not self.paused and self.send_window > 0:
            progress = False
            for stream in list(self.blocked):
                before = stream.queued
                stream.pump(_TURN)
                progress = progress or stream.queued < before

    def forget(self, stream: Stream, *, reset: bool = False) -> None:
        """A stream has ended, both ways."""
        if not stream.closed:
            stream.closed = True
            self.streams.pop(stream.id, None)
            self.blocked.pop(stream, None)
            self.on_stream_ended()
