"""The little of ASGI that is needed outside of Litestar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from controlplane.errors import InvalidInput
from controlplane.gateway.errors import BodyTooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


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
    """Value of a request header, `name` in lower case; None when absent."""
    wanted = name.encode()
    return next((v.decode("latin-1") for k, v in scope["headers"] if k.lower() == wanted), None)


async def body_of(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a request.

    Raises:
        BodyTooLarge: it has more than `limit` bytes, said or seen.
        InvalidInput: the client went away in the middle of it.
    """
    announced = header(scope, "content-length")
    if announced and announced.isdigit() and int(announced[:20]) > limit:
        raise BodyTooLarge(limit)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("The request was cut off.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(limit)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
