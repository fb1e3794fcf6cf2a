"""Our connections to Triton: streams of many clients together on one, opened again when it is lost.

A restarted Triton may listen elsewhere, so its address is asked for each time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from controlplane.errors import ServiceUnavailable, StartupError
from controlplane.gateway.grpc_relay import frames, status
from controlplane.gateway.grpc_relay.connection import CONNECTION_WINDOW, TRIFLES, Connection
from controlplane.gateway.grpc_relay.frames import ProtocolViolation
from controlplane.gateway.grpc_relay.headers import MAX_BLOCK
from controlplane.gateway.grpc_relay.heads import method_path, triton_block
from controlplane.gateway.grpc_relay.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.gateway.grpc_relay.headers import Block, HeaderFields
    from controlplane.gateway.grpc_relay.outbox import Outbox
    from controlplane.gateway.grpc_relay.stream import Owner

# What Triton may send of an answer before the client has taken it.
RESPONSE_WINDOW = 256 * 1024
# Stream ids are used up after 2**31; at 10,000 requests a second that is a matter of days.
_LAST_STREAM = 2**31 - 1
_CONNECT_TIMEOUT = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between attempts to connect
_MAX_CONNECTIONS = 8


class TritonConnection(Connection):
    """The client's end of HTTP/2.

    Attributes:
        leaving: it takes no more streams.
    """

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(RESPONSE_WINDOW, upstream.outbox)
        self._upstream = upstream
        self._next = 1
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        ours = {
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: self.window,
            frames.MAX_HEADER_LIST_SIZE: MAX_BLOCK,
        }
        self.write(frames.PREFACE + frames.settings(ours))
        self.write(frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    def open(self, owner: Owner, block: bytes) -> Stream:
        """Begin a call."""
        stream = Stream(self, self._next, owner)
        self.streams[self._next] = stream
        self._next += 2
        self.leaving |= self._next > _LAST_STREAM
        stream.send_headers(block)
        return stream

    def send_whole(self, block: bytes, data: bytes) -> int:
        """Send a call from its headers to its end at once, if nothing is in its way.

        Returns:
            Its stream's id, for `begin_whole`, which follows before anything is read; 0 where it
            must be sent piece by piece: nothing has been done then.
        """
        size = len(data)
        limit = min(self.peer_frame_size, self.send_window, self.peer_window)
        if size > limit or len(block) > self.peer_frame_size or self.paused:
            return 0
        stream_id, self._next = self._next, self._next + 2
        self.leaving |= self._next > _LAST_STREAM
        self.send_window -= size
        self.send(frames.whole_request(stream_id, block, data))
        return stream_id

    def begin_whole(self, owner: Owner, stream_id: int, size: int) -> Stream:
        """The stream of a call that has been sent, with `size` bytes of DATA."""
        stream = self.streams[stream_id] = Stream(self, stream_id, owner)
        stream.send_window -= size
        stream.send_ended = True
        return stream

    def on_block(self, stream_id: int, block: Block, *, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_idle_stream(stream_id):
                raise ProtocolViolation(frames.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
            return
        if end:
            self.received_end(stream)
        stream.owner.on_headers(stream, block, end=end)

    def take_whole(self, stream_id: int, block: Block, data: bytes, at: int) -> int:
        stream = self.streams.get(stream_id)
        if stream is None or stream.receive_ended or not stream.send_ended or stream.received:
            return 0
        message, at = frames.whole_frame(data, at, frames.DATA, 0, stream_id)
        ending, end = frames.whole_frame(data, at, frames.HEADERS, frames.LAST_HEADERS, stream_id)
        trailers = self._headers.known(ending)
        if not message or trailers is None or len(message) > stream.granted:
            return 0
        self._outbox.more = len(data) - end > TRIFLES
        if not stream.owner.take_whole(stream, block, message, trailers):
            return 0
        self.count_received(len(message))
        return end

    def on_goaway(self, last_stream: int) -> None:
        self.leaving = True
        for stream in [s for s in self.streams.values() if s.id > last_stream]:
            self.forget(stream)
            stream.owner.on_reset(stream, frames.REFUSED_STREAM)
        self.on_stream_ended()

    def on_stream_ended(self) -> None:
        if not self.streams and self.leaving:
            self.close()
        elif len(self.streams) == self.peer_streams - 1:
            self._upstream.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._upstream.lost(self)

    def is_idle_stream(self, stream_id: int) -> bool:
        return stream_id >= self._next or stream_id % 2 == 0


class Upstream:
    """The connections to one Triton."""

    def __init__(self, address: Callable[[], str], outbox: Outbox) -> None:
        """
        Args:
            address: tells `host:port` of the server as it is now.
        """
        self._address = address
        self.outbox = outbox
        self._connections: list[TritonConnection] = []
        self._waiting: set[asyncio.Future[None]] = set()
        self._connecting: asyncio.Task[None] | None = None

    def connection(self) -> TritonConnection | None:
        """One that takes another stream, None when that has to be waited for."""
        for connection in self._connections:
            if connection.leaving or connection.closed:
                continue
            if len(connection.streams) < connection.peer_streams:
                return connection
        return None

    async def connected(self, deadline: float) -> None:
        """Return when there is a usable connection.

        Args:
            deadline: on the event loop's clock.

        Raises:
            ServiceUnavailable: there was none in time.
        """
        loop = asyncio.get_running_loop()
        while self.connection() is None:
            left = deadline - loop.time()
            if left <= 0:
                raise ServiceUnavailable("Triton cannot be reached.")
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.add(future)
            if self._connecting is None:
                self._connecting = loop.create_task(self._connect())
            try:
                await asyncio.wait({future}, timeout=left)
            finally:
                self._waiting.discard(future)

    def wake(self) -> None:
        """Have those who wait look again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def lost(self, connection: TritonConnection) -> None:
        """A connection has ended."""
        with contextlib.suppress(ValueError):
            self._connections.remove(connection)

    async def close(self) -> None:
        """Close all connections."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()

    async def ask(
        self, method: str, message: bytes, *, deadline: float, metadata: HeaderFields = ()
    ) -> bytes:
        """A small unary call of our own.

        Raises:
            Refused: Triton's own error.
            ServiceUnavailable: there is no connection in time, or it was lost.
        """
        await self.connected(deadline)
        connection = self.connection()
        assert connection is not None  # nothing has been awaited since
        question = _Question()
        stream = connection.open(question, triton_block(method_path(method), metadata))
        stream.send_data(b"\0" + len(message).to_bytes(4, "big") + message, end=True)
        try:
            left = deadline - asyncio.get_running_loop().time()
            return await asyncio.wait_for(question.answer, max(0.0, left))
        except asyncio.TimeoutError:
            raise ServiceUnavailable(f"Triton does not answer {method}.") from None
        finally:
            stream.reset(frames.CANCEL)

    async def _connect(self) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        try:
            while self._waiting and self.connection() is None:
                if len(self._connections) < _MAX_CONNECTIONS:
                    with contextlib.suppress(OSError, asyncio.TimeoutError, StartupError):
                        host, _, port = self._address().rpartition(":")
                        making = loop.create_connection(
                            lambda: TritonConnection(self), host.strip("[]"), int(port)
                        )
                        _, made = await asyncio.wait_for(making, _CONNECT_TIMEOUT)
                        self._connections.append(made)
                        continue
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._connecting = None
            self.wake()


class _Question:
    """Owner of a call of ours: collects the one message of its answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None:
        if not end or self.answer.done():
            return
        code, text = status.status_in(block)
        if code:
            self.answer.set_exception(status.Refused(code, text))
        else:
            self.answer.set_result(self._received[5:])

    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None:
        self._received += data
        stream.grant(0, RESPONSE_WINDOW)

    def on_drained(self, stream: Stream) -> None: ...

    def on_reset(self, stream: Stream, code: int) -> None:
        self.on_lost(stream, f"it ended the call with code {code}")

    def take_whole(self, stream: Stream, head: Block, data: bytes, trailers: Block) -> bool:
        return False

    def on_lost(self, stream: Stream, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ServiceUnavailable(f"Triton does not answer: {reason}"))
