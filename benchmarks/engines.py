"""MiniLM through Triton and the gateway on several engines, and what their processes take.

Each engine is a model of its own, all loaded in one server; rounds are interleaved, so that
whatever else the machine does meets all alike. The client runs on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as grpc_tensors
import tritonclient.grpc.aio as triton_grpc

from benchmarks import setting
from benchmarks.throughput import BATCH, drive

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psutil

    from benchmarks.throughput import Call
    from tests.service import Service

IN_FLIGHT = (1, 16, 64)
ENGINES = (("onnxruntime", "fp32"), ("openvino", "bf16"))
_MARKS = 6


def triton_name(engine: str, precision: str) -> str:
    return f"bench--{engine}-{precision}"


def install(service: Service, engines: Sequence[tuple[str, str]]) -> None:
    """One model per engine, installed and loaded."""
    with service.client() as client:
        for engine, precision in engines:
            name = f"bench/{engine}-{precision}"
            client.install(
                name,
                source_url=setting.SOURCE.as_uri(),
                timeout=600,
                engine=engine,
                precision=precision,
            )
            client.load(name)


def call_of(client: triton_grpc.InferenceServerClient, name: str) -> Call:
    async def call(texts: Sequence[str]) -> Any:
        column = np.array([[text.encode()] for text in texts], dtype=np.object_)
        tensor = grpc_tensors.InferInput("text_input", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(column)
        return (await client.infer(name, [tensor])).as_numpy(setting.OUTPUT)

    return call


def workloads() -> dict[str, list[list[str]]]:
    """Requests by name."""
    random = np.random.default_rng(0)
    words = setting._WORDS
    return {
        "17 tokens": [[setting.short_text(random)] for _ in range(256)],
        "120 tokens": [[" ".join(random.choice(words, 118))] for _ in range(256)],
        "32 mixed texts": [setting.mixed_texts(random, BATCH) for _ in range(32)],
    }


async def measure(service: Service, options: argparse.Namespace) -> None:
    """One row per workload and number in flight: sentences/s of each engine by each way."""
    with service.client() as control:
        private_url = control.status().triton["grpc_url"]
    urls = {"private port": private_url, "gateway": service.grpc_url.removeprefix("grpc://")}
    clients = {way: triton_grpc.InferenceServerClient(url) for way, url in urls.items()}
    header = ["workload", "way", *(f"{e} {p}" for e, p in ENGINES), "ratio"]
    setting.print_table("Sentences per second", header, [])
    try:
        for what, requests in workloads().items():
            if options.only not in what:
                continue
            for in_flight in options.in_flight:
                found = await _compare(clients, requests, in_flight, options)
                for row in _rows(f"{what}, {in_flight} in flight", found):
                    setting.print_row(row)
        if options.soak:
            await soak(service, clients["gateway"], options.soak)
    finally:
        for client in clients.values():
            await client.close()
    setting.print_table("Memory", ["engine", "RSS MB", "PSS MB"], memory(service))


async def _compare(
    clients: dict[str, triton_grpc.InferenceServerClient],
    requests: Sequence[Sequence[str]],
    in_flight: int,
    options: argparse.Namespace,
) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(options.rounds + 1):
        for way, client in clients.items():
            for engine in ENGINES:
                call = call_of(client, triton_name(*engine))
                seconds = options.seconds if turn else options.seconds / 2
                per_second, _ = await drive(call, requests, in_flight, seconds)
                if turn:  # the first round warms up
                    found[way, engine[0]].append(per_second)
    return found


def _rows(what: str, found: dict[tuple[str, str], list[float]]) -> list[list[str]]:
    rows = []
    for way in dict.fromkeys(way for way, _ in found):
        each = [statistics.median(found[way, engine]) for engine, _ in ENGINES]
        ratio = f"{each[1] / each[0]:.2f}"
        rows.append([what, way, *(f"{one:.0f}" for one in each), ratio])
    return rows


async def soak(service: Service, client: triton_grpc.InferenceServerClient, count: int) -> None:
    """Many different mixed requests, and the memory of the process after some of them."""
    random = np.random.default_rng(1)
    rows = []
    for engine in ENGINES:
        call, marks = call_of(client, triton_name(*engine)), []
        for _ in range(_MARKS):
            requests = [setting.mixed_texts(random, BATCH) for _ in range(count // _MARKS)]
            todo = iter(requests)

            async def worker(todo: Any = todo, call: Call = call) -> None:
                for texts in todo:
                    await call(texts)

            await asyncio.gather(*[worker() for _ in range(4)])
            marks.append(f"{setting.rss_mb(stub(service, triton_name(*engine))):.0f}")
        rows.append([" ".join(engine), *marks])
    header = ["engine", *(f"{count // _MARKS * (i + 1)} requests" for i in range(_MARKS))]
    setting.print_table("RSS in MB after requests of 32 mixed texts", header, rows)


def stub(service: Service, name: str) -> psutil.Process:
    """The process that runs a model."""
    return next(p for p in service.family() if name in " ".join(p.cmdline()) and "stub" in p.name())


def memory(service: Service) -> list[list[str]]:
    rows = []
    for engine in ENGINES:
        process = stub(service, triton_name(*engine))
        rss, pss = setting.rss_mb(process), setting.pss_mb(process)
        rows.append([" ".join(engine), f"{rss:.0f}", f"{pss:.0f}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.engines`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per way and round")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--in-flight", type=int, nargs="+", default=IN_FLIGHT)
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS", help="memory over time")
    options = parser.parse_args(arguments)
    setting.print_machine()
    with setting.running_service(install=False) as service:
        install(service, ENGINES)
        asyncio.run(measure(service, options))


if __name__ == "__main__":
    main()
