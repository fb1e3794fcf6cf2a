"""What the gRPC relay costs: the same client at the gateway and at the private Triton port.

Rounds are interleaved, so that whatever else the machine does meets both alike; ratios and added
latencies are taken within the round. MiniLM, and a trivial model that answers with its input. The
client sends messages that were encoded beforehand: what is measured is the way, not the client.
Beside the gateway runs a relay that only copies bytes (byte_relay.py): the least that any in Python
can cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
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
    from collections.abc import Awaitable, Callable, Iterator, Sequence

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
    service: Service, ways: dict[str, tuple[str, list[bytes]]], options: Options
) -> list[list[str]]:
    """Rows for each number in flight, one per way.

    Args:
        ways: address and requests; the first is what the others are compared with, the last is
            the gateway.
    """
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for address, requests in ways.values():
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            calls.append((channel.unary_unary(_METHOD), requests))
        for call, requests in reversed(calls):  # the model is loaded, memory arenas warm up
            await drive(call, requests, 64, 1.0)
        for in_flight in IN_FLIGHT:
            used = setting.processor_seconds(service)
            rounds = [
                [
                    await drive(call, requests, in_flight, options.seconds)
                    for call, requests in calls
                ]
                for _ in range(options.rounds)
            ]
            used = setting.processor_seconds(service) - used
            for number, way in enumerate(ways):
                runs = [(one[0], one[number]) for one in rounds]
                rows.append([f"{in_flight}", way, *_row(runs)])
            rows[-1].append(f"{used / sum(run.count for _, run in runs) * 1e6:.0f}")
    return rows


def _row(runs: Sequence[tuple[Run, Run]]) -> list[str]:
    ratios = [run.per_second / direct.per_second for direct, run in runs]
    added = [(run.p50 - direct.p50) * 1000 for direct, run in runs]
    return [
        f"{statistics.median(run.per_second for _, run in runs):.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{statistics.median(run.p50 for _, run in runs) * 1000:.2f}",
        f"{statistics.median(added):+.2f} ({min(added):+.2f} to {max(added):+.2f})",
    ]


class Options(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    only: str


async def measure(service: Service, options: Options) -> None:
    """Print a table for each model."""
    header = ["in flight", "way", "requests/s", "ratio", "p50 ms", "added p50 ms"]
    header.append("gateway's processor time, µs")
    with (
        service.client() as control,
        tempfile.TemporaryDirectory() as folder,
        byte_relay(str(control.status().triton["grpc_url"])) as bytes_alone,
    ):
        source = trivial_model(Path(folder), "trivial")
        control.install(TRIVIAL, source_url=source.as_uri(), timeout=60)
        private = str(control.status().triton["grpc_url"])
        for title, make, name in (
            ("MiniLM, 17 tokens", minilm_requests, setting.MODEL),
            ("Trivial model", trivial_requests, TRIVIAL),
        ):
            if options.only.lower() not in title.lower():
                continue
            theirs = make(name.replace("/", "--"))
            ways = {
                "private port": (private, theirs),
                "bytes copied": (bytes_alone, theirs),
                "gateway": (service.grpc_url, make(name)),
            }
            setting.print_table(title, header, await compare(service, ways, options))


@contextlib.contextmanager
def byte_relay(address: str) -> Iterator[str]:
    """Address of a process that does nothing but copy bytes."""
    command = [sys.executable, "-m", "benchmarks.byte_relay", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


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
