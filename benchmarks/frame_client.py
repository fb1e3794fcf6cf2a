"""A gRPC client for load: encoded requests out, ends of streams in, nothing else.

Python's gRPC libraries take longer for a request than a trivial model does, on the cores that are
measured. This one takes a tenth of that, so it shows what a server can do rather than what its
client can.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from controlplane.gateway.grpc_relay import frames
from controlplane.gateway.grpc_relay.heads import method_path, triton_block

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADERS = triton_block(method_path("ModelInfer"))
_CREDIT = 2**24
_WHOLE = frames.END_HEADERS


class FrameClient(asyncio.Protocol):
    """One connection that keeps `in_flight` requests running until it is told to stop.

    Attributes:
        latencies: seconds of each request that has been answered.
    """

    def __init__(self, requests: Sequence[bytes], in_flight: int) -> None:
        """
        Args:
            requests: messages with gRPC's prefix, each of one DATA frame; taken in turns.
        """
        self._requests = requests
        self._in_flight = in_flight
        self._next, self._began = 1, dict[int, float]()
        self._left, self._received = b"", 0
        self._running = True
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        greeting = frames.settings({frames.INITIAL_WINDOW_SIZE: _CREDIT})
        greeting += frames.window_update(0, _CREDIT)
        self._transport.write(frames.PREFACE + greeting + self._more(self._in_flight))

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server has closed the connection"))

    def stop(self) -> None:
        """Send nothing more; `done` is set when all answers are there."""
        self._running = False

    def _more(self, count: int) -> bytes:
        out, now = [], time.perf_counter()
        for _ in range(count):
            stream, self._next = self._next, self._next + 2
            self._began[stream] = now
            request = self._requests[stream // 2 % len(self._requests)]
            out.append(frames.frame(frames.HEADERS, _WHOLE, stream, _HEADERS))
            out.append(frames.frame(frames.DATA, frames.END_STREAM, stream, request))
        return b"".join(out)

    def data_received(self, data: bytes) -> None:
        data, at, out = self._left + data, 0, list[bytes]()
        answered = len(self.latencies)
        while len(data) - at >= frames.HEAD_SIZE:
            high, low, kind, flags, stream = frames.unpack_head(data, at)
            start = at + frames.HEAD_SIZE
            if start + (high << 8 | low) > len(data):
                break
            at = start + (high << 8 | low)
            if kind <= frames.HEADERS:
                self._received += at - start
                if flags & frames.END_STREAM:
                    self.latencies.append(time.perf_counter() - self._began.pop(stream))
            elif kind in (frames.SETTINGS, frames.PING) and not flags & frames.ACK:
                payload = data[start:at] if kind == frames.PING else b""
                out.append(frames.frame(kind, frames.ACK, 0, payload))
        self._left = data[at:]
        if self._running:
            out.append(self._more(len(self.latencies) - answered))
        if self._received > _CREDIT >> 1:
            out.append(frames.window_update(0, self._received))
            self._received = 0
        self._transport.write(b"".join(out))
        if not self._running and not self._began and not self.done.done():
            self.done.set_result(None)
            self._transport.close()


async def drive(
    address: str, requests: Sequence[bytes], in_flight: int, seconds: float
) -> tuple[list[float], float]:
    """Latencies of the requests that were answered, and the seconds that they took together."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    began = time.perf_counter()
    _, client = await loop.create_connection(
        lambda: FrameClient(requests, in_flight), host, int(port)
    )
    loop.call_later(seconds, client.stop)
    await client.done
    return client.latencies, time.perf_counter() - began
