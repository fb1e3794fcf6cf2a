"""The least that a relay in Python can cost: bytes are copied from socket to socket, unread.

`python -m benchmarks.byte_relay HOST:PORT` prints the port it listens on; benchmarks/relay_grpc.py
measures it beside the gateway.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Back(asyncio.Protocol):
    """The server's end of a connection; what comes in goes to the client."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._client.close()


class Front(asyncio.Protocol):
    """The client's end."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._early = b""
        self._server: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        client = cast("asyncio.Transport", transport)
        self._joining = asyncio.get_running_loop().create_task(self._join(client))

    async def _join(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_connection(lambda: Back(client), *self._address)
        server.write(self._early)
        self._server = server

    def data_received(self, data: bytes) -> None:
        if self._server is None:
            self._early += data
        else:
            self._server.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._server is not None:
            self._server.close()


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
