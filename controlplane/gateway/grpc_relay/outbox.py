"""When what has been written is handed to the sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.gateway.grpc_relay.connection import Connection


class Outbox:
    """Connections with frames to send: all of them, once per batch of frames that came in.

    What comes in on one connection goes out on others. Handing it to their sockets right after it
    has been read saves a turn of the event loop on each hop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: list[Connection] = []
        self._afterwards: list[Callable[[], None]] = []
        self._reading = False

    def add(self, connection: Connection) -> None:
        """Have a connection flushed soon."""
        if not self._due and not self._reading:
            self._loop.call_soon(self.flush)
        self._due.append(connection)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Have work done when what is due has left: what nobody waits for, such as counting.

        uvloop's transports send at the end of a turn of the loop, so the next one is early enough.
        It must not raise.
        """
        if not self._afterwards:
            self._loop.call_soon(self._work)
        self._afterwards.append(work)

    def _work(self) -> None:
        afterwards, self._afterwards = self._afterwards, []
        for work in afterwards:
            work()

    def flush(self) -> None:
        """Send all that is due."""
        due, self._due = self._due, []
        for connection in due:
            connection.flush()

    def begin(self) -> None:
        """Frames are being read: `end` follows."""
        self._reading = True

    def end(self) -> None:
        """The frames have been read."""
        self._reading = False
        self.flush()
