"""HTTP/1.1 to the private Triton server: pooled connections that pass bytes on.

A general client costs more than the whole rest of a relayed request (docs/benchmarks.md). This one
does what the relay needs (`upstream_connection.py`), and keeps the connections that serve.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from controlplane.gateway.upstream_connection import WHOLE, Answer, Connection, UpstreamLost

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_TIMEOUT = 5.0
_IDLE = 256  # connections kept per server


class Upstream:
    """The pool. All calls on one event loop.

    Args:
        url: `http://host:port` of the server; a restarted one may listen elsewhere.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._known = ""
        self._host, self._port = "", 0
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def request(
        self, head: bytes, body: bytes, *, deadline: float, again: bool, enough: int = WHOLE
    ) -> Answer:
        """Send a request; returns when the answer is whole, or `enough` of its body has come.

        Args:
            head: request line and headers with the empty line after them.
            deadline: on the event loop's clock, for the answer to its end.
            again: a kept connection that turns out to be closed is replaced. A server that dies
                looks the same, so not for requests that must not run twice.
            enough: bytes; 0 returns when the head is there.

        Raises:
            UpstreamLost, UpstreamTimeout.
        """
        connection = self.take()
        if connection is not None:
            answer = connection.begin(head, body, deadline)
            try:
                await connection.wait(deadline, enough=enough)
            except UpstreamLost as error:
                if error.begun or not again:
                    raise
            else:
                return answer
        connection = await self.connect()
        answer = connection.begin(head, body, deadline)
        await connection.wait(deadline, enough=enough)
        return answer

    @property
    def kept(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """A kept connection, to `begin` a request on; None where there is none."""
        self._check_address()
        # The one used last: the others may end by themselves.
        return self._idle.pop() if self._idle else None

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            UpstreamLost: the server does not take it.
        """
        self._check_address()
        making = asyncio.ensure_future(self._make())
        try:
            # Not asyncio.wait_for: before Python 3.12 it forgets a cancellation, as of a client
            # that leaves, which comes together with what it waits for.
            await asyncio.wait({making}, timeout=CONNECT_TIMEOUT)
        except asyncio.CancelledError:
            making.add_done_callback(_abort_made)
            making.cancel()
            raise
        if not making.done():
            making.cancel()
            raise UpstreamLost(f"Triton cannot be reached within {CONNECT_TIMEOUT:g} s")
        try:
            return making.result()
        except OSError as error:
            raise UpstreamLost(f"Triton cannot be reached: {error}") from None

    async def _make(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), self._host, self._port
        )
        return connection

    def close(self) -> None:
        """Drop every connection, those with requests too."""
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()

    def add(self, connection: Connection) -> None:
        """Know a connection, so that `close` finds it."""
        self._all.add(connection)

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose request has been answered."""
        if len(self._idle) < _IDLE and connection in self._all:
            self._idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        """Take a connection out that is lost."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _check_address(self) -> None:
        url = self._url()
        if url != self._known:
            for connection in self._idle[:]:
                connection.abort()
            parts = urlsplit(url)
            self._known, self._host, self._port = url, parts.hostname or "", parts.port or 80


def _abort_made(making: asyncio.Future[Connection]) -> None:
    """Drop a connection that nobody waits for any more."""
    if not making.cancelled() and making.exception() is None:
        making.result().abort()
