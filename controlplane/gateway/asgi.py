"""The little of ASGI that is needed outside of Litestar."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from controlplane.gateway.errors import BodyTooLarge, BodyTooSlow, ClientGone, UnsupportedMedia

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


# A client that stops sending in the middle of a body is given up after so many seconds.
STALL_SECONDS = 30.0
LISTEN_AFTER = 0.01
# Key of the scope of a request that was begun below ASGI and goes on here: a `v2_begun.Begun`.
BEGUN = "modelmora.begun"


@dataclass
class Reply:
    """A whole response; Content-Length is added when it is sent."""

    status: int
    body: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def json(cls, status: int, value: Any) -> Reply:
        """A response with a JSON body."""
        return cls(status, msgspec.json.encode(value), [(b"content-type", b"application/json")])

    async def send(self, send: Send) -> None:
        """Send it as the answer to the current request."""
        length = (b"content-length", str(len(self.body)).encode())
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [*self.headers, length],
            }
        )
        await send({"type": "http.response.body", "body": self.body})


def header(scope: Scope, name: str) -> str | None:
    """Value of a request header, `name` in lower case (as ASGI has them); None when absent."""
    wanted = name.encode()
    for key, value in scope["headers"]:  # asked ten times a request: a generator would show
        if key == wanted:
            return str(value, "latin-1")
    return None


class ClientWatch:
    """Cancels the request's task when its client goes away before the answer.

    The body comes through `receive`; from its end on somebody must listen for the disconnect. Most
    answers are sooner there than a task for that pays off, so it starts a moment later.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._request = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self.gone = False

    async def receive(self) -> Message:
        """ASGI's `receive` for the application; after the body it waits for the disconnect."""
        if self._timer is not None or self.gone:
            await self._over.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            self._over.set()
        elif not message.get("more_body", False):
            self._timer = self._loop.call_later(LISTEN_AFTER, self._listen)
        return message

    def stop(self) -> None:
        """The answer is there: a client that leaves now leaves nothing undone."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        self._over.set()

    def _listen(self) -> None:
        self._listener = self._loop.create_task(self._await_disconnect())

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._over.set()
        if self._request is not None:
            self._request.cancel()


async def next_chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next part of a request's body, and whether more follows.

    Raises:
        BodyTooSlow: nothing came for STALL_SECONDS.
        ClientGone: the client went away in the middle of it.
    """
    message = await _in_time(receive)
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def _in_time(receive: Receive) -> Message:
    # Not asyncio.wait_for: before Python 3.12 that costs a task, for a body that is there.
    task, late = asyncio.current_task(), False
    assert task is not None

    def give_up() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(STALL_SECONDS, give_up)
    try:
        return await receive()
    except asyncio.CancelledError:
        if not late:
            raise
        if hasattr(task, "uncancel"):
            task.uncancel()
        raise BodyTooSlow(STALL_SECONDS) from None
    finally:
        timer.cancel()


def announced_length(scope: Scope, limit: int) -> int | None:
    """The request's Content-Length, None where it has none.

    Raises:
        BodyTooLarge: it is above `limit`.
        UnsupportedMedia: the body is encoded for its transfer in another way than by chunks.
    """
    coding = header(scope, "transfer-encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise UnsupportedMedia(f"Transfer-Encoding {coding[:40]!r} is not read; use chunked.")
    announced = header(scope, "content-length")
    if not (announced and announced.isdigit()):
        return None
    length = int(announced[:20])
    if length > limit:
        raise BodyTooLarge(limit)
    return length


async def body_of(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a request.

    Raises:
        BodyTooLarge: it has more than `limit` bytes, said or seen.
        BodyTooSlow, ClientGone: as `next_chunk`.
    """
    announced_length(scope, limit)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        chunk, more = await next_chunk(receive)
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(limit)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
