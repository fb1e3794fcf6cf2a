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
import psutil
import tritonclient.grpc as triton_grpc
import uvloop
from tritonclient.grpc import service_pb2 as pb

from benchmarks import frame_client, setting
from tests.triton_models import trivial_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


async def drive(address: str, requests: Sequence[bytes], in_flight: int, options: Options) -> Run:
    """Keep `in_flight` requests running for a while."""
    way = _frames if options.client == "frames" else _library
    latencies, passed = await way(address, requests, in_flight, options.seconds)
    return Run(len(latencies), len(latencies) / passed, statistics.median(latencies))


async def _frames(
    address: str, requests: Sequence[bytes], in_flight: int, seconds: float
) -> tuple[list[float], float]:
    prefixed = [b"\0" + len(request).to_bytes(4, "big") + request for request in requests]
    return await frame_client.drive(address, prefixed, in_flight, seconds)


async def _library(
    address: str, requests: Sequence[bytes], in_flight: int, seconds: float
) -> tuple[list[float], float]:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(_METHOD)
        await call(requests[0])  # the connection is there
        start = time.perf_counter()

        async def worker(index: int) -> None:
            while (begun := time.perf_counter()) - start < seconds:
                await call(requests[index % len(requests)])
                latencies.append(time.perf_counter() - begun)
                index += in_flight

        await asyncio.gather(*[worker(number) for number in range(in_flight)])
        return latencies, time.perf_counter() - start


class Way(NamedTuple):
    """Where requests go, and which process passes them on."""

    address: str
    requests: list[bytes]
    process: psutil.Process | None = None

    def processor_seconds(self) -> float:
        """Processor time that the process has used."""
        if self.process is None:
            return 0.0
        times = self.process.cpu_times()
        return float(times.user + times.system)


async def compare(ways: dict[str, Way], options: Options) -> list[list[str]]:
    """Rows for each number in flight, one per way; all are compared with the first."""
    rows = []
    warm = options._replace(seconds=1.0)
    for way in reversed(ways.values()):  # the model is loaded, memory arenas warm up
        await drive(way.address, way.requests, 64, warm)
    for in_flight in IN_FLIGHT:
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        used = dict.fromkeys(ways, 0.0)
        for _ in range(options.rounds):
            for name, way in ways.items():
                used[name] -= way.processor_seconds()
                runs[name].append(await drive(way.address, way.requests, in_flight, options))
                used[name] += way.processor_seconds()
        direct = next(iter(runs.values()))
        for name, found in runs.items():
            each = used[name] / sum(run.count for run in found)
            row = _row(list(zip(direct, found, strict=True)))
            rows.append([f"{in_flight}", name, *row, f"{each * 1e6:.0f}" if each else ""])
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
    client: str


async def measure(service: Service, options: Options) -> None:
    """Print a table for each model."""
    header = ["in flight", "way", "requests/s", "ratio", "p50 ms", "added p50 ms"]
    header.append("processor time, µs")
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
                "private port": Way(private, theirs),
                "bytes copied": Way(bytes_alone.address, theirs, bytes_alone.process),
                "gateway": Way(service.grpc_url, make(name), setting.control_plane(service)),
            }
            setting.print_table(title, header, await compare(ways, options))


@contextlib.contextmanager
def byte_relay(address: str) -> Iterator[Way]:
    """A process that does nothing but copy bytes."""
    command = [sys.executable, "-m", "benchmarks.byte_relay", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            yield Way(f"127.0.0.1:{port}", [], psutil.Process(process.pid))
        finally:
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.relay_grpc`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per way and round")
    parser.add_argument("--only", choices=["minilm", "trivial"], default="", help="one model alone")
    parser.add_argument(
        "--client",
        choices=["library", "frames"],
        default="library",
        help="grpc.aio, or one that costs next to nothing (frame_client.py)",
    )
    given = parser.parse_args(arguments)
    setting.print_machine()
    uvloop.install()
    with setting.running_service(install=given.only != "trivial") as service:
        asyncio.run(measure(service, Options(**vars(given))))


if __name__ == "__main__":
    main()
