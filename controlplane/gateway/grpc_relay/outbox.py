"""When what has been written is handed to the sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.connection import Connection


class Outbox:
    """Connections with frames to send: all of them, once per batch of frames that came in.

    What comes in on one connection goes out on others. Handing it to their sockets right after it
    has been read saves a turn of the event loop on each hop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: list[Connection] = []
        self._reading = False

    def add(self, connection: Connection) -> None:
        """Have a connection flushed soon."""
        if not self._due and not self._reading:
            self._loop.call_soon(self.flush)
        self._due.append(connection)

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
