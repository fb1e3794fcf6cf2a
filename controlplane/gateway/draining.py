"""Around the HTTP port: counts requests under way, refuses new ones before the service stops.

The port goes on listening meanwhile, so that load balancers are told (`/health/ready` answers 503)
and clients get a reason and a Retry-After instead of a refused connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from controlplane.errors import ServiceUnavailable
from controlplane.gateway.asgi import BEGUN, Reply
from controlplane.gateway.errors import envelope, retry_after

if TYPE_CHECKING:
    from controlplane.gateway.asgi import App, Message, Receive, Scope, Send

READY = ("/health/ready", "/v2/health/ready")
# Still answered: whoever looks wants to see how far it has got.
_LOOKING = ("/health", "/v2/health/live", "/metrics", "/api/v1/metrics", "/api/v1/status")
_TEXT = "The service is stopping."


class Draining:
    """An ASGI application around another one."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._draining = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._running

    @property
    def draining(self) -> bool:
        """True when new requests are refused."""
        return self._draining

    def begin(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    async def idle(self, timeout: float) -> bool:
        """Wait until no request is under way; False when some still are after `timeout` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
        return self._running == 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = BEGUN in scope  # and counted, below ASGI
        if self._draining and not begun:
            send = _closing(send)
            if not scope["path"].startswith(_LOOKING) or scope["path"] in READY:
                await _refusal(scope["path"]).send(send)
                return
        if not begun:
            self.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self.leave()

    def enter(self) -> None:
        """Count a request that begins."""
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a request that has ended."""
        self._running -= 1
        if not self._running:
            self._idle.set()


def _closing(send: Send) -> Send:
    """Answers that end their connection: the next request is for another server."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        await send(message)

    return sending


def _refusal(path: str) -> Reply:
    error = ServiceUnavailable(_TEXT)
    if path == "/health/ready":
        reply = Reply.json(503, {"status": "not_ready", "checks": {"service": "is stopping"}})
    elif path.startswith("/v2"):
        reply = Reply.json(503, {"error": error.message})
    else:
        reply = Reply.json(503, envelope(error.code, error.message, error.details))
    reply.headers.append((b"retry-after", (retry_after(error) or "2").encode()))
    return reply
