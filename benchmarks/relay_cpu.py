"""Processor time of the gRPC relay alone: real frames in and out, no sockets, no Triton.

A client's call (HEADERS, DATA) and Triton's answer (HEADERS, DATA, trailers) are handed to the two
connections as bytes, with the real lease, counting and metrics. Processor time hardly depends on
what else the machine does, so two versions of the relay can be compared on a busy one.

Once in a row, as under load, and once with the processor's caches full of other things, as when
there is one request at a time and a model computes meanwhile: of these also what passes until the
request, and the answer, are with the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import inspect
import pstats
import statistics
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

from benchmarks import setting
from benchmarks.relay_grpc import _request
from controlplane.events import EventBus
from controlplane.gateway.grpc_relay import frames
from controlplane.gateway.grpc_relay.headers import encode
from controlplane.gateway.grpc_relay.heads import method_path
from controlplane.gateway.grpc_relay.relay import Relay
from controlplane.gateway.grpc_relay.server import ClientConnection
from controlplane.gateway.grpc_relay.upstream import TritonConnection
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.observability.metrics import Metrics
from controlplane.settings import Settings
from tests.relay import GatedEffects, Store, framed

if TYPE_CHECKING:
    from collections.abc import Sequence

_REQUEST = encode(
    (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method_path("ModelInfer")),
        (b":authority", b"127.0.0.1:8001"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-python-asyncio/1.76.0 grpc-c/51.0.0 (linux; chttp2)"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    )
)
_RESPONSE = encode(
    (
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    )
)
_TRAILERS = encode(((b"grpc-status", b"0"),))


_OTHER_CODE = inspect.getsource(inspect)[:60_000].rpartition("\ndef ")[0]


class Wire:
    """A transport that remembers how many bytes it was given."""

    def __init__(self) -> None:
        self.written_at = 0.0

    def write(self, _: bytes) -> None:
        self.written_at = time.perf_counter()

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...


class OtherWork:
    """What fills the caches: memory is copied, and much other code of the interpreter runs."""

    def __init__(self) -> None:
        self._from = np.zeros(2**20, np.uint8)
        self._to = np.ones(2**20, np.uint8)

    def work(self) -> None:
        """Some milliseconds of it."""
        code = compile(_OTHER_CODE, "other", "exec")
        exec(code, {})
        self._to[:] = self._from


class Bench:
    """A relay between two wires."""

    def __init__(self) -> None:
        bus = EventBus()
        Metrics(bus, SimpleNamespace())  # type: ignore[arg-type]
        scheduler = Scheduler(GatedEffects(), bus, budget_mb=100, max_models=10, load_timeout=30)
        self.scheduler, store = scheduler, Store()
        servables = {name: store.servable(name) for name in ("org/0", "org--0")}
        services: Any = SimpleNamespace(
            settings=Settings(),
            store=SimpleNamespace(servable=lambda name, _=None: servables[name]),
            scheduler=scheduler,
            server=SimpleNamespace(state="ready"),
            bus=bus,
            suspect=lambda _: None,
        )
        self.servable = servables["org/0"]
        self.relay = Relay(services)
        self.client = ClientConnection(self.relay._door)
        self.triton = TritonConnection(self.relay.upstream)
        self.to_client, self.to_triton = Wire(), Wire()
        self.other = OtherWork()

    async def start(self) -> None:
        """Greet on both wires, and load the model."""
        self.client.connection_made(self.to_client)  # type: ignore[arg-type]
        self.triton.connection_made(self.to_triton)  # type: ignore[arg-type]
        self.relay.upstream._connections.append(self.triton)
        self.client.data_received(frames.PREFACE + frames.settings({}))
        self.client.data_received(frames.window_update(0, 2**30))
        limit = {frames.MAX_CONCURRENT_STREAMS: 2**31 - 1}
        self.triton.data_received(frames.settings(limit) + frames.window_update(0, 2**30))
        deadline = asyncio.get_running_loop().time() + 10
        await self.scheduler.load(self.servable, deadline=deadline)

    def calls(self, messages: Sequence[bytes], answer: bytes, number: int) -> float:
        """Relay calls one after the other; returns seconds of processor time for each."""
        began = time.process_time()
        for index in range(number):
            self.client.data_received(self.request(messages[index % len(messages)]))
            self.triton.data_received(self.answer(answer))
        return (time.process_time() - began) / number

    def cold(self, message: bytes, answer: bytes) -> list[float]:
        """One call with cold caches.

        Returns:
            Seconds until the request is written, until all is done, and the same of the answer.
        """
        found = []
        for way, make, content, wire in (
            (self.client, self.request, message, self.to_triton),
            (self.triton, self.answer, answer, self.to_client),
        ):
            data = make(content)
            self.other.work()
            began = time.perf_counter()
            way.data_received(data)
            ended = time.perf_counter()
            found += [wire.written_at - began, ended - began]
        return found

    def request(self, message: bytes) -> bytes:
        """A client's next call."""
        stream = self.client.last_peer_stream + 2 if self.client.last_peer_stream else 1
        return (
            frames.frame(frames.HEADERS, frames.END_HEADERS, stream, _REQUEST)
            + frames.frame(frames.DATA, frames.END_STREAM, stream, message)
            + frames.window_update(0, 5)
        )

    def answer(self, message: bytes) -> bytes:
        """Triton's answer to it."""
        stream = next(iter(self.triton.streams))
        return (
            frames.frame(frames.HEADERS, frames.END_HEADERS, stream, _RESPONSE)
            + frames.frame(frames.DATA, 0, stream, message)
            + frames.frame(frames.HEADERS, frames.LAST_HEADERS, stream, _TRAILERS)
            + frames.window_update(0, 5)
        )


async def measure(options: argparse.Namespace) -> None:
    """Print microseconds of processor time per call."""
    bench = Bench()
    await bench.start()
    random = np.random.default_rng(0)
    texts = [
        framed(_request("org/0", "text_input", "BYTES", np.array([[text.encode()]], object)))
        for text in (setting.short_text(random) for _ in range(64))
    ]
    answer = framed(bytes(1700))
    bench.calls(texts, answer, 2000)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(bench.calls, texts, answer, options.calls)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    found = []
    for _ in range(options.rounds):
        found.append(bench.calls(texts, answer, options.calls) * 1e6)
        await asyncio.sleep(0)  # what was left for later is done here, and counts in the next
    rows = [["ModelInfer, one text", f"{min(found):.1f}", f"{statistics.median(found):.1f}"]]
    setting.print_table("The relay's own processor time", ["call", "least µs", "median µs"], rows)
    cold = [bench.cold(text, answer) for text in texts * (options.cold // len(texts))]
    names = ("request is written", "request is dealt with", "answer is written", "all is done")
    rows = [
        [name, f"{statistics.median(values) * 1e6:.1f}"]
        for name, values in zip(names, zip(*cold, strict=True), strict=True)
    ]
    setting.print_table("With cold caches: time that passes", ["until", "median µs"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.relay_cpu`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", type=int, default=640, help="calls with cold caches")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args(arguments)
    uvloop.install()
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()
