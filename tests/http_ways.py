"""Both ways of an infer request over HTTP, below ASGI and through it, before a stand-in for Triton.

Sockets, uvicorn's protocol, scheduler and connections are real. The two ports differ in their
protocol class alone, so what one does with some bytes can be held against what the other does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from controlplane.events import EventBus, InferenceFinished
from controlplane.gateway.draining import Draining
from controlplane.gateway.http import HttpGateway
from controlplane.gateway.http_direct import DirectHttp, speaking
from controlplane.gateway.http_protocol import LimitedHttp
from controlplane.gateway.v2_http import V2Http
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.settings import Settings
from tests.relay import GatedEffects, Store
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

MODEL = "org/0"
PATH = "/v2/models/org--0/infer"
JSON_BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}
).encode()
# Of what differs from one try to the next.
_VARYING = re.compile(rb"(?im)^(date|x-trace-id): .*\r\n")


def request(
    body: bytes = JSON_BODY,
    *headers: str,
    path: str = PATH,
    method: str = "POST",
    version: str = "1.1",
    chunked: bool = False,
) -> bytes:
    """The bytes of a request."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    lines = [f"{method} {path} HTTP/{version}", "Host: x", framing, *headers, "", ""]
    if chunked:
        pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    return "\r\n".join(lines).encode() + body


def answer(body: bytes, *headers: str, status: int = 200) -> bytes:
    """The bytes of an answer of Triton's."""
    lines = [f"HTTP/1.1 {status} Of It", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Hang:
    """A fate: no answer."""


class Close:
    """A fate: the connection ends."""


class StandIn(asyncio.Protocol):
    """One connection of Triton's; answers with what `fate` has for a request."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._triton.connections.append(self)

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        while (end := self._bytes.find(b"\r\n\r\n") + 4) > 3:
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", self._bytes)
            size = end + (int(length[1]) if length else 0)
            if len(self._bytes) < size:
                return
            whole, self._bytes = self._bytes[:size], self._bytes[size:]
            self._triton.seen.append(whole)
            fate = self._triton.fate(len(self._triton.seen), whole)
            if fate is Close:
                self.transport.abort()
            elif fate is not Hang:
                self.transport.write(fate)

    def connection_lost(self, _: Exception | None) -> None:
        self._triton.connections.remove(self)


@dataclass
class Triton:
    """Answers each request with what it was sent, unless `fate(n, request)` is something else."""

    seen: list[bytes] = field(default_factory=list)
    connections: list[StandIn] = field(default_factory=list)
    fate: Callable[[int, bytes], Any] = lambda _, request: echo(request)


def echo(request: bytes) -> bytes:
    """An answer that holds the request."""
    body = json.dumps({"got": request.decode("latin-1")}).encode()
    return answer(body, "Content-Type: application/json")


@dataclass(eq=False)
class Way:
    """One of the two ports."""

    port: int
    draining: Draining
    asgi: list[str]
    server: asyncio.Server
    state: ServerState

    @property
    def connections(self) -> set[Any]:
        return self.state.connections

    @property
    def quiet(self) -> bool:
        """True when nothing is under way, and no part of a request waits for its rest."""
        return not self.draining.running and all(map(_is_quiet, self.connections))


def _is_quiet(connection: Any) -> bool:
    if connection.transport.is_closing():
        return True
    cycle = connection.cycle
    answered = cycle is None or (cycle.response_complete and not connection.pipeline)
    return answered and getattr(connection, "_plan", None) is None


@dataclass
class Ways:
    """The two ports and what stands behind them."""

    direct: Way
    ordinary: Way
    triton: Triton
    scheduler: Scheduler
    services: Any
    finished: list[InferenceFinished]
    suspects: list[str]

    def leases(self) -> int:
        return sum(resident.leases for resident in self.scheduler.residents())

    async def warm(self) -> None:
        """Load the model and have a kept connection to Triton."""
        fate, self.triton.fate = self.triton.fate, Triton().fate
        await exchange(self, self.ordinary, [request()])
        self.triton.fate = fate


@dataclass
class Result:
    """What came of some bytes: for the client, at Triton, in the books."""

    received: bytes
    seen: list[bytes]
    counted: list[tuple[Any, ...]]
    suspects: list[str]
    traces: list[bytes]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Result)
        return self.comparable() == other.comparable()

    def comparable(self) -> tuple[Any, ...]:
        return _VARYING.sub(b"", self.received), self.seen, self.counted, self.suspects

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])


async def exchange(
    ways: Ways, way: Way, pieces: Sequence[bytes | None], *, leave: bool = False
) -> Result:
    """Send bytes as they are cut over one connection, wait for quiet, and close it.

    Args:
        pieces: None waits until all before it has been answered.
        leave: close without waiting for quiet.
    """
    before = len(ways.triton.seen), len(ways.finished), len(ways.suspects)
    reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
    await soon(lambda: way.connections)
    for piece in (*pieces, *([] if leave else [None])):
        if piece is None:
            await soon(lambda: way.quiet)
        else:
            await _write(writer, piece)
    with contextlib.suppress(OSError):
        writer.write_eof()
    received = await asyncio.wait_for(_all_of(reader), 10)
    writer.close()
    await soon(lambda: way.quiet and not way.connections)
    counted = [
        (e.model_id, e.task_type, e.protocol, e.status, e.error_code, e.batch_size)
        for e in ways.finished[before[1] :]
    ]
    traces = re.findall(rb"x-trace-id: (.*)\r\n", received)
    return Result(
        received, ways.triton.seen[before[0] :], counted, ways.suspects[before[2] :], traces
    )


async def _write(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Write, and let the other side read it before the next piece joins it."""
    writer.write(piece)
    for _ in range(6):
        await asyncio.sleep(0)


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    received = b""
    with contextlib.suppress(OSError):  # a reset, after what came
        while chunk := await reader.read(2**16):
            received += chunk
    return received


async def soon(condition: Callable[[], Any]) -> None:
    """`eventually`, without a pause while the event loop has something to do."""
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0)
    await eventually(condition, 10)


@contextlib.asynccontextmanager
async def running_ways(**settings: Any) -> AsyncIterator[Ways]:
    """Both ways, on the running event loop."""
    loop = asyncio.get_running_loop()
    triton, bus = Triton(), EventBus()
    finished, suspects = list[InferenceFinished](), list[str]()
    bus.subscribe(InferenceFinished, finished.append)
    standing = await loop.create_server(lambda: StandIn(triton), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{standing.sockets[0].getsockname()[1]}"
    scheduler = Scheduler(GatedEffects(), bus, budget_mb=100, max_models=10, load_timeout=30)
    services: Any = SimpleNamespace(
        settings=Settings(**({"request_timeout": 20.0} | settings)),
        store=Store(),
        scheduler=scheduler,
        server=SimpleNamespace(
            state="ready", endpoints=SimpleNamespace(http_url=url, http_headers={"x-secret": "s"})
        ),
        bus=bus,
        suspect=lambda servable: suspects.append(servable.model_id),
    )
    v2 = V2Http(services)
    gateway = HttpGateway(None, v2)  # type: ignore[arg-type]  # no REST is asked for
    direct = await _way(gateway, lambda draining: speaking(gateway.direct, draining))
    ordinary = await _way(gateway, lambda _: LimitedHttp)
    try:
        yield Ways(direct, ordinary, triton, scheduler, services, finished, suspects)
    finally:
        await gateway.close()
        for server in (direct.server, ordinary.server, standing):
            server.close()
        for standing_in in list(triton.connections):
            standing_in.transport.abort()
        await eventually(lambda: not triton.connections, 10)
        await scheduler.close()


async def _way(gateway: HttpGateway, speak: Callable[[Draining], type[LimitedHttp]]) -> Way:
    asgi: list[str] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        asgi.append(scope["path"])
        await gateway(scope, receive, send)

    draining = Draining(watched)
    protocol = speak(draining)
    config = uvicorn.Config(
        draining,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    return Way(server.sockets[0].getsockname()[1], draining, asgi, server, state)


def connection_of(way: Way) -> DirectHttp:
    """The one connection there is."""
    (connection,) = way.connections
    assert isinstance(connection, DirectHttp)
    return connection
