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

    Attributes:
        due: those connections.
        is_filled: frames are being read; whoever reads them will `flush`.
        more: behind the frames that are being dealt with there are others to read.
    """

    def __init__(self) -> None:
        self.due: list[Connection] = []
        self.is_filled = self.more = False
        self._loop = asyncio.get_running_loop()

    def add(self, connection: Connection) -> None:
        """Have a connection flushed soon."""
        if not self.due and not self.is_filled:
            self._loop.call_soon(self.flush)
        self.due.append(connection)

    def flush(self) -> None:
        """Send all that is due."""
        due, self.due = self.due, []
        for connection in due:
            connection.flush()
