"""What the gRPC relay costs: the same client at the gateway and at the private Triton port.

Rounds are interleaved, so that whatever else the machine does meets both alike; ratios and added
latencies are taken within the round. MiniLM, and a trivial model that answers with its input. The
client sends messages that were encoded beforehand: what is measured is the way, not the client.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc.aio
import numpy as np
import tritonclient.grpc as triton_grpc
import uvloop
from tritonclient.grpc import service_pb2 as pb

from benchmarks import setting
from tests.triton_models import trivial_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.service import Service

IN_FLIGHT = (1, 16, 64)
TRIVIAL = "bench/trivial"
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Run(NamedTuple):
    """One way for a moment: requests, requests per second, and the median of their seconds."""

    count: int
    per_second: float
    p50: float


def minilm_requests(model: str) -> list[bytes]:
    """Short texts, encoded for that name of MiniLM."""
    random = np.random.default_rng(0)
    return [
        _request(model, "text_input", "BYTES", np.array([[setting.short_text(random)]], object))
        for _ in range(256)
    ]


def trivial_requests(model: str) -> list[bytes]:
    """One number, encoded for that name of the trivial model."""
    return [_request(model, "number", "INT64", np.array([[7]], np.int64))]


def _request(model: str, name: str, datatype: str, values: np.ndarray) -> bytes:
    tensor = triton_grpc.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    message = pb.ModelInferRequest(model_name=model, inputs=[tensor._get_tensor()])
    message.raw_input_contents.append(tensor._get_content())
    encoded: bytes = message.SerializeToString()
    return encoded


async def drive(
    call: Callable[[bytes], Awaitable[bytes]],
    requests: Sequence[bytes],
    in_flight: int,
    seconds: float,
) -> Run:
    """Keep `in_flight` requests running."""
    latencies: list[float] = []
    start = time.perf_counter()

    async def worker(index: int) -> None:
        while (begun := time.perf_counter()) - start < seconds:
            await call(requests[index % len(requests)])
            latencies.append(time.perf_counter() - begun)
            index += in_flight

    await asyncio.gather(*[worker(number) for number in range(in_flight)])
    passed = time.perf_counter() - start
    return Run(len(latencies), len(latencies) / passed, statistics.median(latencies))


async def compare(
    service: Service, private: str, ours: list[bytes], theirs: list[bytes], options: Options
) -> list[list[str]]:
    """A row per number in flight."""
    rows = []
    async with (
        grpc.aio.insecure_channel(private) as direct_channel,
        grpc.aio.insecure_channel(service.grpc_url) as gateway_channel,
    ):
        direct, gateway = (c.unary_unary(_METHOD) for c in (direct_channel, gateway_channel))
        await drive(gateway, ours, 64, 1.0)  # the model is loaded, memory arenas warm up
        await drive(direct, theirs, 64, 1.0)
        for in_flight in IN_FLIGHT:
            used = setting.processor_seconds(service)
            runs = [
                (
                    await drive(direct, theirs, in_flight, options.seconds),
                    await drive(gateway, ours, in_flight, options.seconds),
                )
                for _ in range(options.rounds)
            ]
            used = setting.processor_seconds(service) - used
            rows.append(
                [*_row(in_flight, runs), f"{used / sum(g.count for _, g in runs) * 1e6:.0f}"]
            )
    return rows


def _row(in_flight: int, runs: Sequence[tuple[Run, Run]]) -> list[str]:
    ratios = [gateway.per_second / direct.per_second for direct, gateway in runs]
    added = [(gateway.p50 - direct.p50) * 1000 for direct, gateway in runs]
    return [
        str(in_flight),
        f"{statistics.median(direct.per_second for direct, _ in runs):.0f}",
        f"{statistics.median(gateway.per_second for _, gateway in runs):.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{statistics.median(direct.p50 for direct, _ in runs) * 1000:.2f}",
        f"{statistics.median(added):+.2f} ({min(added):+.2f} to {max(added):+.2f})",
    ]


class Options(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    only: str


async def measure(service: Service, options: Options) -> None:
    """Print a table for each model."""
    header = ["in flight", "private port /s", "gateway /s", "ratio", "p50 ms", "added p50 ms"]
    header.append("gateway processor µs")
    with service.client() as control, tempfile.TemporaryDirectory() as folder:
        source = trivial_model(Path(folder), "trivial")
        control.install(TRIVIAL, source_url=source.as_uri(), timeout=60)
        private = control.status().triton["grpc_url"]
        trivial_name = TRIVIAL.replace("/", "--")
        for title, make, name, private_name in (
            ("MiniLM, 17 tokens", minilm_requests, setting.MODEL, setting.TRITON_NAME),
            ("Trivial model", trivial_requests, TRIVIAL, trivial_name),
        ):
            if options.only.lower() in title.lower():
                rows = await compare(service, private, make(name), make(private_name), options)
                setting.print_table(title, header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.relay_grpc`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per way and round")
    parser.add_argument("--only", choices=["minilm", "trivial"], default="", help="one model alone")
    given = parser.parse_args(arguments)
    setting.print_machine()
    uvloop.install()
    with setting.running_service(install=given.only != "trivial") as service:
        asyncio.run(measure(service, Options(given.rounds, given.seconds, given.only)))


if __name__ == "__main__":
    main()
