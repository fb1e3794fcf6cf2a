"""Processor time of the gRPC relay alone: real frames in and out, no sockets, no Triton.

A client's call (HEADERS, DATA) and Triton's answer (HEADERS, DATA, trailers) are handed to the two
connections as bytes, with the real lease, counting and metrics. Processor time hardly depends on
what else the machine does, so two versions of the relay can be compared on a busy one.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
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


class Wire:
    """A transport that remembers how many bytes it was given."""

    def __init__(self) -> None:
        self.writes = self.bytes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.bytes += len(data)

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...


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

    async def start(self) -> None:
        """Greet on both wires, and load the model."""
        self.client.connection_made(self.to_client)  # type: ignore[arg-type]
        self.triton.connection_made(self.to_triton)  # type: ignore[arg-type]
        self.relay.upstream._connections.append(self.triton)
        self.client.data_received(frames.PREFACE + frames.settings({}))
        self.client.data_received(frames.window_update(0, 2**31 - 1 - frames.DEFAULT_WINDOW))
        limit = {frames.MAX_CONCURRENT_STREAMS: 2**31 - 1}
        self.triton.data_received(frames.settings(limit) + frames.window_update(0, 2**30))
        deadline = asyncio.get_running_loop().time() + 10
        await self.scheduler.load(self.servable, deadline=deadline)

    def calls(self, messages: Sequence[bytes], answer: bytes, number: int) -> float:
        """Relay calls one after the other; returns seconds of processor time for each."""
        began = time.process_time()
        client, triton = self.client, self.triton
        for index in range(number):
            stream = client.last_peer_stream + 2 if client.last_peer_stream else 1
            client.data_received(
                frames.frame(frames.HEADERS, frames.END_HEADERS, stream, _REQUEST)
                + frames.frame(
                    frames.DATA, frames.END_STREAM, stream, messages[index % len(messages)]
                )
            )
            upstream = next(iter(triton.streams))
            both = frames.END_STREAM | frames.END_HEADERS
            triton.data_received(
                frames.frame(frames.HEADERS, frames.END_HEADERS, upstream, _RESPONSE)
                + frames.frame(frames.DATA, 0, upstream, answer)
                + frames.frame(frames.HEADERS, both, upstream, _TRAILERS)
            )
        return (time.process_time() - began) / number


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.relay_cpu`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args(arguments)
    uvloop.install()
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()
