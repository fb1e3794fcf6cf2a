"""One stream of one connection: what waits to be sent on it, and how much the peer may send.

Flow control is per hop (RFC 9113 §5.2). What a slow receiver does not take waits in the `queue` of
its stream, and the sender on the other side gets no further credit for it: so back pressure passes
from end to end, and the queue is never longer than the window that was granted to the sender.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from controlplane.gateway.grpc_relay import frames

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.connection import Connection
    from controlplane.gateway.grpc_relay.headers import Block


class Owner(Protocol):
    """Whom a stream tells what has come in."""

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None: ...
    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None: ...
    def on_drained(self, stream: Stream) -> None: ...
    def on_reset(self, stream: Stream, code: int) -> None: ...
    def on_lost(self, stream: Stream, reason: str) -> None: ...

    def take_whole(self, stream: Stream, head: Block, data: bytes, trailers: Block) -> bool:
        """Take an answer in one step; False where that cannot be: nothing has been done then."""


class Stream:
    """Our end of a stream.

    Attributes:
        send_window: bytes that the peer takes before its next WINDOW_UPDATE; may be negative.
        queued: bytes in `queue`.
        received, granted: bytes that came in, and that were allowed to, since the stream began.
        send_ended, receive_ended: END_STREAM has been sent, has come in.
    """

    __slots__ = (
        "closed",
        "connection",
        "granted",
        "id",
        "owner",
        "queue",
        "queued",
        "receive_ended",
        "received",
        "send_ended",
        "send_window",
        "trailers",
        "wants_end",
    )

    def __init__(self, connection: Connection, stream_id: int, owner: Owner) -> None:
        self.connection = connection
        self.id = stream_id
        self.owner = owner
        self.send_window = connection.peer_window
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.received = 0
        self.granted = connection.window
        self.wants_end = False
        self.trailers: bytes | None = None
        self.send_ended = self.receive_ended = self.closed = False

    # -- sending -----------------------------------------------------------------------------

    def send_headers(self, block: bytes) -> None:
        """Send headers that more will follow."""
        connection = self.connection
        if not self.closed:
            limit = connection.peer_frame_size
            connection.write(frames.header_frames(self.id, block, end=False, limit=limit))

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes, now or as soon as windows allow; `end` ends the stream after them."""
        if self.closed or self.send_ended:
            return
        connection, size = self.connection, len(data)
        if (
            not self.queue
            and size <= self.send_window
            and size <= connection.send_window
            and size <= connection.peer_frame_size
            and not connection.paused
        ):
            self.send_window -= size
            connection.send_window -= size
            flags = frames.END_STREAM if end else 0
            connection.write(frames.frame(frames.DATA, flags, self.id, data))
            if end:
                self._sent_end()
            return
        if data:
            self.queue.append(data)
            self.queued += size
        self.wants_end = end
        self.pump()

    def send_whole(self, head: bytes, data: bytes, trailers: bytes) -> bool:
        """Send an answer from its headers to its end at once, if nothing is in its way."""
        connection, size = self.connection, len(data)
        limit = min(connection.peer_frame_size, connection.send_window, self.send_window)
        if size > limit or max(len(head), len(trailers)) > connection.peer_frame_size:
            return False
        if connection.paused or self.closed or self.queue or not self.receive_ended:
            return False
        connection.send_window -= size
        connection.send(frames.whole_answer(self.id, head, data, trailers))
        self._sent_end()
        return True

    def finish(self, trailers: bytes) -> None:
        """End the stream with trailers, after what is queued."""
        if self.closed or self.send_ended:
            return
        self.trailers = trailers
        if not self.queue:
            self._send_trailers()

    def pump(self, turn: int = 2**63) -> None:
        """Send what is queued as far as windows allow, at most about `turn` bytes."""
        connection = self.connection
        before = self.queued
        while self.queue and not connection.paused and turn > 0:
            room = min(self.send_window, connection.send_window, connection.peer_frame_size)
            if room <= 0:
                break
            turn -= self._send_piece(room)
        if self.queue:
            connection.blocked[self] = None
        else:
            self._drained()
        if self.queued < before:
            self.owner.on_drained(self)

    def _send_piece(self, room: int) -> int:
        data = self.queue.popleft()
        if len(data) > room:
            self.queue.appendleft(data[room:])
            data = data[:room]
        size = len(data)
        self.queued -= size
        self.send_window -= size
        self.connection.send_window -= size
        end = self.wants_end and not self.queue
        flags = frames.END_STREAM if end else 0
        self.connection.write(frames.frame(frames.DATA, flags, self.id, data))
        if end:
            self._sent_end()
        return size

    def _drained(self) -> None:
        self.connection.blocked.pop(self, None)
        if self.trailers is not None:
            self._send_trailers()
        elif self.wants_end and not self.send_ended:
            self.connection.write(frames.frame(frames.DATA, frames.END_STREAM, self.id))
            self._sent_end()

    def _send_trailers(self) -> None:
        trailers, self.trailers = self.trailers or b"", None
        limit = self.connection.peer_frame_size
        self.connection.write(frames.header_frames(self.id, trailers, end=True, limit=limit))
        self._sent_end()

    def _sent_end(self) -> None:
        self.send_ended = True
        if self.receive_ended:
            self.connection.forget(self)

    def reset(self, code: int) -> None:
        """End the stream at once, both ways; nothing more is told to its owner."""
        if not self.closed:
            self.connection.write(frames.rst_stream(self.id, code))
            self.connection.forget(self, reset=True)

    # -- receiving ---------------------------------------------------------------------------

    def grant(self, unread: int, target: int) -> None:
        """Let the peer send until `target` bytes are with us of which `unread` already are.

        Small steps are saved up, so that short messages cost no WINDOW_UPDATE at all.
        """
        if self.receive_ended or self.closed:
            return
        allowed = self.received - unread + target
        if allowed - self.granted >= target >> 1:
            self.connection.write(frames.window_update(self.id, allowed - self.granted))
            self.granted = allowed


class _Nobody:
    """Owner of a stream for as long as it takes to find the right one, and of one that rests."""

    def on_headers(self, stream: Stream, block: Block, *, end: bool) -> None: ...
    def on_data(self, stream: Stream, data: bytes, *, end: bool) -> None: ...
    def on_drained(self, stream: Stream) -> None: ...
    def on_reset(self, stream: Stream, code: int) -> None: ...
    def on_lost(self, stream: Stream, reason: str) -> None: ...
    def take_whole(self, stream: Stream, head: Block, data: bytes, trailers: Block) -> bool:
        return False


NOBODY = _Nobody()
