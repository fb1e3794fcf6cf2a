"""The gRPC relay between real peers: clients of the `h2` library, a `grpc.aio` server as Triton.

No model runs: "Triton" answers with the request it was sent. The scheduler is the real one; loads
take until the test opens the gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

from controlplane.errors import ModelMoraError, ModelNotFound
from controlplane.events import EventBus, InferenceFinished
from controlplane.gateway.grpc_relay.relay import Relay
from controlplane.gateway.infer_scan import InferScan, KnownHeads
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.registry.model import Servable, TaskType
from controlplane.registry.model_form import ModelForm
from controlplane.settings import Settings
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from controlplane.gateway.wire import Names

PREFIX = "/inference.GRPCInferenceService/"


class GatedEffects:
    """Loads that take until `gate` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, servable: Servable, timeout: float) -> Loaded:
        await self.gate.wait()
        return Loaded(memory_mb=1.0, process_id=None, seconds=0.0, response_time_ms=1.0)

    async def unload(self, servable: Servable, timeout: float) -> None:
        return None

    def fit_together(self, one: Servable, other: Servable) -> bool:
        return True

    def kill_server(self) -> bool:
        return False


class Store:
    """Models org/0 to org/9; from 5 on they are decoupled."""

    def servable(self, name: str, version: str | None = None) -> Servable:
        model_id = name.replace("--", "/")
        if model_id not in {f"org/{number}" for number in range(10)}:
            raise ModelNotFound(name)
        return Servable(
            model_id=model_id,
            version="main",
            version_id=model_id,
            task_type=TaskType.TXT2EMBED,
            triton_name=model_id.replace("/", "--"),
            triton_version=1,
            need_mb=1.0,
            form=ModelForm(decoupled=model_id >= "org/5"),
        )


class EchoTriton(grpc.GenericRpcHandler):
    """Answers each message with itself; `fate` may do something else with the nth ModelInfer.

    On a stream `reply` may give other answers to a message, at once; what is put into `later` is
    sent on the stream that is open.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.running = 0
        self.cancelled = 0
        self.fate: Callable[[int, Any], Any] | None = None
        self.reply: Callable[[bytes], list[bytes]] = lambda message: [message]
        self.later: asyncio.Queue[bytes | None] | None = None
        self.server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self.server = grpc.aio.server(options=options)
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop(None)

    def service(self, details: Any) -> Any:
        if details.method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._infer)

    async def _infer(self, message: bytes, context: Any) -> bytes:
        self.seen.append(message)
        self.running += 1
        try:
            if self.fate is not None:
                await self.fate(len(self.seen), context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return message

    async def _stream(self, messages: Any, context: Any) -> Any:
        answers = self.later = asyncio.Queue[bytes | None]()

        async def take() -> None:
            async for message in messages:
                self.seen.append(message)
                for answer in self.reply(message):
                    answers.put_nowait(answer)
            answers.put_nowait(None)

        taking = asyncio.create_task(take())
        try:
            while (answer := await answers.get()) is not None:
                yield answer
        finally:
            taking.cancel()


class KnowsAll(KnownHeads):
    """Finds the names of every whole message: all that can be is passed in one step.

    What may be found is `KnownHeads`' own affair (test_infer_scan.py); here all requests go the
    way of those that are alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def find(self, message: bytes, start: int) -> Names | None:
        scan = InferScan()
        try:
            scan.feed(message[start:])
            scan.finish()
        except ModelMoraError:
            return None
        if scan.in_sequence or scan.priority or scan.timeout_us:
            return None
        self.found += 1
        return scan.names


@dataclasses.dataclass
class World:
    """A relay and what stands around it."""

    relay: Relay
    triton: EchoTriton
    effects: GatedEffects
    scheduler: Scheduler
    finished: list[InferenceFinished]
    suspects: list[str]
    port: int

    def leases(self) -> int:
        return sum(resident.leases for resident in self.scheduler.residents())

    def waiters(self) -> int:
        return sum(len(resident.waiters) for resident in self.scheduler.residents())

    async def at_rest(self) -> None:
        """Return when nothing is left of any call."""
        await eventually(lambda: not self.leases() and not self.waiters(), 10)
        for connection in self.relay.upstream._connections:
            await eventually(lambda c=connection: not c.streams, 10)
            assert not connection.blocked
        assert self.relay.retention.take(64 * 1024 * 1024)
        self.relay.retention.give(64 * 1024 * 1024)
        self.relay.tally.publish()


@contextlib.asynccontextmanager
async def running_relay(*, known: bool = False, **settings: Any) -> AsyncIterator[World]:
    """A relay in this event loop.

    Args:
        known: requests are taken for such as have come before.
    """
    bus = EventBus()
    finished: list[InferenceFinished] = []
    bus.subscribe(InferenceFinished, finished.append)
    effects, triton, suspects = GatedEffects(), EchoTriton(), list[str]()
    await triton.start()
    scheduler = Scheduler(effects, bus, budget_mb=100, max_models=10, load_timeout=30)
    endpoints = SimpleNamespace(grpc_metadata=(("triton-grpc-protocol-key", "secret"),))
    server = SimpleNamespace(state="ready", endpoints=endpoints)
    services: Any = SimpleNamespace(
        settings=Settings(**({"request_timeout": 20.0} | settings)),
        store=Store(),
        scheduler=scheduler,
        server=server,
        bus=bus,
        suspect=lambda servable: suspects.append(servable.model_id),
    )
    endpoints.grpc_url = f"127.0.0.1:{triton.port}"
    relay = Relay(services)
    if known:
        relay.known_heads = KnowsAll()
    port = await relay.open("127.0.0.1", 0)
    try:
        yield World(relay, triton, effects, scheduler, finished, suspects, port)
    finally:
        await relay.close(0)
        await scheduler.close()
        await triton.stop()


@dataclasses.dataclass
class Answer:
    """What has come back on a stream."""

    headers: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> int:
        return int(self.headers.get(b"grpc-status", b"-1"))

    @property
    def message(self) -> bytes:
        """The one message of the answer."""
        assert self.data[:1] == b"\0"
        assert int.from_bytes(self.data[1:5], "big") == len(self.data) - 5
        return self.data[5:]


class H2Client:
    """A strict HTTP/2 client; its library refuses what the protocol does not allow."""

    def __init__(self, port: int) -> None:
        self.port = port
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.closed = False
        self.acknowledge = True  # give flow-control credit back as data comes in

    async def __aenter__(self) -> H2Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.h2.initiate_connection()
        self.flush()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        self.writer.close()
        await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def open(self, method: str = "ModelInfer", **headers: str) -> int:
        """Begin a call; returns its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.answers[stream_id] = Answer()
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PREFIX + method),
            (":authority", "relay"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *((key.replace("_", "-"), value) for key, value in headers.items()),
        ]
        self.h2.send_headers(stream_id, fields)
        return stream_id

    async def send(
        self,
        stream_id: int,
        data: bytes,
        *,
        end: bool = False,
        padding: int = 0,
        patience: float = 10,
    ) -> None:
        """Send bytes as one DATA frame, when flow control allows it."""
        await eventually(
            lambda: self.h2.local_flow_control_window(stream_id) >= len(data) + padding + 1,
            patience,
        )
        self.h2.send_data(stream_id, data, end_stream=end, pad_length=padding or None)
        self.flush()

    async def send_all(self, stream_id: int, data: bytes) -> None:
        """Send all bytes in whatever pieces flow control allows, and end the stream."""
        while data:
            await eventually(lambda: self.h2.local_flow_control_window(stream_id) > 0, 10)
            room = min(self.h2.local_flow_control_window(stream_id), 16_384)
            self.h2.send_data(stream_id, data[:room])
            data = data[room:]
            self.flush()
        self.h2.end_stream(stream_id)
        self.flush()

    async def answer(self, stream_id: int) -> Answer:
        """The answer when it is complete."""
        found = self.answers[stream_id]
        await eventually(lambda: found.ended or found.reset is not None or self.closed, 20)
        return found

    async def _read(self) -> None:
        while data := await self.reader.read(65_536):
            for event in self.h2.receive_data(data):
                self._take(event)
            self.flush()
        self.closed = True

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code)
            return
        found = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if found is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            found.headers.update(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            found.data += event.data
            if self.acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            found.reset = int(event.error_code)
        elif isinstance(event, h2.events.StreamEnded):
            found.ended = True


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """A message with gRPC's prefix."""
    return bytes((compressed,)) + len(message).to_bytes(4, "big") + message
