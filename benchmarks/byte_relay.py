"""The least that a relay in Python can cost: bytes are copied from socket to socket, unread.

`python -m benchmarks.byte_relay HOST:PORT` prints the port it listens on; benchmarks/relay_grpc.py
measures it beside the gateway.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop


class End(asyncio.Protocol):
    """One end of a connection; what comes in goes out at the other."""

    def __init__(self) -> None:
        self.other: asyncio.Transport | None = None
        self.early = b""

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self.other is not None:
            self.other.close()


class Front(End):
    """The client's end."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._address = host, port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._joining = asyncio.get_running_loop().create_task(self._join(transport))

    async def _join(self, transport: asyncio.BaseTransport) -> None:
        loop = asyncio.get_running_loop()
        other, back = await loop.create_connection(End, *self._address)
        back.other, self.other = transport, other  # type: ignore[assignment]
        other.write(self.early)


async def serve(address: str) -> None:
    """Relay to `address` until the process is ended."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Front(host, int(port)), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve(sys.argv[1]))
