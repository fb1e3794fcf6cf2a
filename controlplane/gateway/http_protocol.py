"""uvicorn's HTTP/1.1, with limits on what comes before a body.

httptools decides where a message ends, for us and for nobody behind us: what goes to Triton is
framed anew. It refuses a request with two lengths; it would take heads of any size, for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

# Request line and headers together, bytes; nginx takes 32 KB, Triton 64.
MAX_HEAD = 65_536
# From the connection, or the first byte of a further request, to the end of its headers.
HEAD_SECONDS = 30.0


class HeadTooLarge(Exception):
    """Raised through the parser, which stops there."""


class LimitedHttp(HttpToolsProtocol):
    """One client's connection."""

    _in_head = True
    _head_bytes = _fed = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._fed = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD:
            self.send_400_response("")
        elif self._head_timer is None:
            self._expect_head()

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, self._fed
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._head_bytes > MAX_HEAD and self._head_size() > MAX_HEAD:
            raise HeadTooLarge
        self._in_head = False
        self._head_is_there()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request; one with too large a head with 431 (RFC 6585 §5)."""
        if not (self._in_head and self._head_bytes > MAX_HEAD):
            super().send_400_response(msg)
            return
        text = b"Request line and headers are larger than %d bytes." % MAX_HEAD
        self.transport.write(
            STATUS_LINE[431]
            + b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(text)
            + text
        )
        self.transport.close()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
