"""Clients' connections: the server's end of HTTP/2, and the door they come in by."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from controlplane.gateway.grpc_relay import frames
from controlplane.gateway.grpc_relay.connection import CONNECTION_WINDOW, TRIFLES, Connection
from controlplane.gateway.grpc_relay.frames import ProtocolViolation
from controlplane.gateway.grpc_relay.heads import MAX_HEADERS, request_head
from controlplane.gateway.grpc_relay.limits import Allowance
from controlplane.gateway.grpc_relay.stream import NOBODY, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.gateway.grpc_relay.headers import Block
    from controlplane.gateway.grpc_relay.heads import RequestHead
    from controlplane.gateway.grpc_relay.outbox import Outbox
    from controlplane.gateway.grpc_relay.stream import Owner

    Accept = Callable[[Stream, Block], Owner]
    AcceptWhole = Callable[["ClientConnection", int, RequestHead, bytes], Stream | None]

# What a client may send of a request before its model is known and loaded: the protocol's default.
REQUEST_WINDOW = frames.DEFAULT_WINDOW
MAX_STREAMS = 4096
_GREETING_TIMEOUT = 10.0
# Streams that are reset as soon as they are opened ("rapid reset", CVE-2023-44487) cost us more
# than their sender; a client that gives up thousands of calls at once is still served.
_RESET_BURST, _RESET_RATE = 10_000, 200.0


class ClientConnection(Connection):
    """The server's end of one connection."""

    def __init__(self, door: Door) -> None:
        super().__init__(REQUEST_WINDOW, door.outbox)
        self._door = door
        self._read = self._greet
        self._greeting_timer = self._loop.call_later(_GREETING_TIMEOUT, self.abort)
        self._leaving = False
        self._resets = Allowance(_RESET_BURST, _RESET_RATE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._door.connections.add(self)
        made_with = transport.get_extra_info("socket")
        if made_with is not None:  # a client whose machine is gone is noticed in the end
            made_with.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        ours = {
            frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            frames.MAX_HEADER_LIST_SIZE: MAX_HEADERS,
        }
        self.write(frames.settings(ours))
        self.write(frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        self._greeting_timer.cancel()
        self._door.connections.discard(self)
        super().connection_lost(exc)
        self._door.on_change()

    def _greet(self, data: bytes) -> bytes:
        """Read the preface that comes before all frames; returns what is not read yet."""
        size = min(len(data), len(frames.PREFACE))
        if data[:size] != frames.PREFACE[:size]:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2) only")
        if size < len(frames.PREFACE):
            return data
        self._greeting_timer.cancel()
        self._read = self._read_frames
        return self._read_frames(data[size:])

    def leave(self) -> None:
        """Take no more streams; close when the last one has ended."""
        if not self._leaving:
            self._leaving = True
            self.write(frames.goaway(self.last_peer_stream, frames.NO_ERROR, "the server stops"))
            self.flush()
            self.on_stream_ended()

    def on_block(self, stream_id: int, block: Block, *, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            if stream.receive_ended or not end:
                raise ProtocolViolation(frames.PROTOCOL_ERROR, "HEADERS within a stream")
            self.received_end(stream)
            stream.owner.on_data(stream, b"", end=True)
            return
        if not self.is_idle_stream(stream_id):
            if stream_id % 2 and stream_id <= self.last_peer_stream:
                return  # trailers of a stream that we have reset meanwhile
            raise ProtocolViolation(frames.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if stream_id % 2 == 0:
            raise ProtocolViolation(frames.PROTOCOL_ERROR, f"a client opened stream {stream_id}")
        self.last_peer_stream = stream_id
        if self._leaving or len(self.streams) >= MAX_STREAMS:
            self.write(frames.rst_stream(stream_id, frames.REFUSED_STREAM))
            self._take_reset()
            return
        stream = Stream(self, stream_id, NOBODY)
        self.streams[stream_id] = stream
        stream.owner = self._door.accept(stream, block)
        if end:
            self.received_end(stream)
            stream.owner.on_data(stream, b"", end=True)

    def take_whole(self, stream_id: int, block: Block, data: bytes, at: int) -> int:
        head = block.request or request_head(block)
        usual = head.is_infer and stream_id % 2 and stream_id > self.last_peer_stream
        if not usual or self._leaving or len(self.streams) >= MAX_STREAMS:
            return 0
        credit, at = frames.skip_credit(data, at, stream_id)
        message, end = frames.whole_frame(data, at, frames.DATA, frames.END_STREAM, stream_id)
        if not message:
            return 0
        self._outbox.more = len(data) - end > TRIFLES
        stream = self._door.accept_whole(self, stream_id, head, message)
        if stream is None:
            return 0
        self.last_peer_stream = stream_id
        stream.send_window += credit
        self.count_received(len(message))
        return end

    def begin_whole(self, stream_id: int, size: int) -> Stream:
        """The stream of a call whose one DATA frame of `size` bytes has come and ended it."""
        stream = Stream(self, stream_id, NOBODY)
        stream.received, stream.receive_ended = size, True
        self.streams[stream_id] = stream
        return stream

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._take_reset()
        super()._rst_stream(flags, stream_id, payload)

    def _take_reset(self) -> None:
        if not self._resets.take(self._loop.time()):
            raise ProtocolViolation(frames.ENHANCE_YOUR_CALM, "too many streams are reset")

    def on_goaway(self, last_stream: int) -> None:
        self._leaving = True
        self.on_stream_ended()

    def on_stream_ended(self) -> None:
        if self._leaving and not self.streams:
            self.close()

    def is_idle_stream(self, stream_id: int) -> bool:
        return stream_id > self.last_peer_stream or stream_id % 2 == 0


class Door:
    """Listens, and keeps the connections that came in."""

    def __init__(self, accept: Accept, accept_whole: AcceptWhole, outbox: Outbox) -> None:
        """
        Args:
            accept: finds the owner of a stream that has begun.
            accept_whole: deals with a call that has come whole and makes its stream; None where
                the call must be taken step by step.
        """
        self.accept = accept
        self.accept_whole = accept_whole
        self.outbox = outbox
        self.connections: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port cannot be had.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self), sock=listening)
        return int(listening.getsockname()[1])

    async def close(self, grace: float) -> None:
        """Take no new calls, let the running ones end for `grace` seconds, then cut them off."""
        if self._server is None:
            return
        self._server.close()
        loop = asyncio.get_running_loop()
        for connection in list(self.connections):
            connection.leave()
        end = loop.time() + grace
        while self.connections and (left := end - loop.time()) > 0:
            self._changed.clear()
            await _within(self._changed.wait(), left)
        for connection in list(self.connections):
            connection.close()
        end = loop.time() + 1.0
        while self.connections and (left := end - loop.time()) > 0:  # let the goodbyes be sent
            self._changed.clear()
            await _within(self._changed.wait(), left)
        for connection in list(self.connections):
            connection.abort()
        self._server = None

    def on_change(self) -> None:
        """A connection has ended."""
        self._changed.set()


async def _within(waiting: object, seconds: float) -> None:
    try:
        await asyncio.wait_for(waiting, seconds)  # type: ignore[arg-type]
    except asyncio.TimeoutError:
        return
