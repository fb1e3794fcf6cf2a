"""Sentences per second and latency, through every way in, beside ONNX Runtime in this process.

Rounds are interleaved: in each, every way is measured for a moment, and ratios are taken within
the round, so that whatever else the machine does meets all ways alike. Clients run in this
process, on the same cores as the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import tritonclient.grpc as grpc_tensors
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http as http_tensors
import tritonclient.http.aio as triton_http

from backends.engines import BatchCost, Engine
from backends.text_embedding.embedder import Embedder
from backends.text_embedding.requests import EmbeddingRequest
from benchmarks import setting

if TYPE_CHECKING:
    from tests.service import Service

IN_FLIGHT = (1, 4, 16, 64)
BATCH = 32
Call = Callable[[Sequence[str]], Awaitable[Any]]


@dataclass
class Samples:
    """What one way did in all rounds of one workload."""

    per_second: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        return [
            f"{statistics.median(self.per_second):.0f}",
            f"{statistics.median(self.ratios):.2f}",
            f"{setting.percentile_ms(self.latencies, 50):.1f}",
            f"{setting.percentile_ms(self.latencies, 99):.1f}",
        ]


class AllInOne:
    """An engine whose cost makes one batch of everything: naive padding."""

    cost = BatchCost(max_tokens=2**31, call_tokens=2**31)

    def __init__(self, engine: Engine) -> None:
        self.run = engine.run
        self.device = engine.device


class InProcess:
    """ONNX Runtime here: with our sub-batches, and padded to the longest of 32 texts."""

    def __init__(self, service: Service) -> None:
        self._embedder = Embedder.open(setting.version_folder(service))

    def per_second(self, texts: Sequence[str], seconds: float, *, naive: bool = False) -> float:
        """Sentences per second, in batches of 32 of the texts, over at least `seconds`."""
        model = self._embedder
        if naive:
            model = Embedder(model.artefact, model._tokenizer, AllInOne(model.engine))
        request = [EmbeddingRequest(tuple(texts[:BATCH]), normalize=False)]
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            model.embed(request)
            count += BATCH
        return count / passed


def _column(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([[text.encode()] for text in texts], dtype=np.object_)


def _grpc_way(client: triton_grpc.InferenceServerClient) -> Call:
    async def call(texts: Sequence[str]) -> Any:
        tensor = grpc_tensors.InferInput("text_input", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(_column(texts))
        answer = await client.infer(setting.TRITON_NAME, [tensor])
        return answer.as_numpy(setting.OUTPUT)

    return call


def _http_way(client: triton_http.InferenceServerClient, **options: Any) -> Call:
    async def call(texts: Sequence[str]) -> Any:
        tensor = http_tensors.InferInput("text_input", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(_column(texts))
        answer = await client.infer(setting.TRITON_NAME, [tensor], **options)
        return answer.as_numpy(setting.OUTPUT)

    return call


def _rest_way(session: aiohttp.ClientSession, url: str) -> Call:
    async def call(texts: Sequence[str]) -> Any:
        text = texts[0] if len(texts) == 1 else list(texts)
        async with session.post(url, json={"input_data": {"text": text}}) as response:
            response.raise_for_status()
            return await response.json()

    return call


@contextlib.asynccontextmanager
async def ways(service: Service) -> AsyncIterator[dict[str, Call]]:
    """The ways in, by name; the private Triton port, which only the control plane uses, first."""
    with service.client() as control:
        control.load(setting.MODEL)  # the private port loads nothing by itself
        private_url = control.status().triton["grpc_url"]
    private = triton_grpc.InferenceServerClient(private_url)
    grpc = triton_grpc.InferenceServerClient(service.grpc_url.removeprefix("grpc://"))
    http = triton_http.InferenceServerClient(service.url.removeprefix("http://"), conn_limit=64)
    connector = aiohttp.TCPConnector(limit=64)
    async with private, grpc, http, aiohttp.ClientSession(connector=connector) as session:
        yield {
            "private Triton port, gRPC": _grpc_way(private),
            "gateway gRPC": _grpc_way(grpc),
            "gateway HTTP /v2": _http_way(http),
            "gateway REST": _rest_way(session, f"{service.url}/api/v1/infer/{setting.MODEL}"),
        }


async def drive(
    call: Call, requests: Sequence[Sequence[str]], in_flight: int, seconds: float
) -> tuple[float, list[float]]:
    """Keep `in_flight` requests running; sentences per second, and each request's seconds."""
    latencies: list[float] = []
    sentences = 0
    start = time.perf_counter()

    async def worker(first: int) -> None:
        nonlocal sentences
        index = first
        while time.perf_counter() - start < seconds:
            texts = requests[index % len(requests)]
            begun = time.perf_counter()
            await call(texts)
            latencies.append(time.perf_counter() - begun)
            sentences += len(texts)
            index += in_flight

    await asyncio.gather(*[worker(number) for number in range(in_flight)])
    return sentences / (time.perf_counter() - start), latencies


async def measure(service: Service, *, rounds: int, seconds: float) -> None:
    """Run all workloads and print a table for each."""
    random = np.random.default_rng(0)
    short = [[setting.short_text(random)] for _ in range(256)]
    mixed = [[text] for text in setting.mixed_texts(random, 256)]
    bulk = [setting.mixed_texts(random, BATCH) for _ in range(16)]
    here = InProcess(service)
    async with ways(service) as calls:
        for call in calls.values():  # connections and memory arenas warm up
            await drive(call, bulk, 2, 0.5)
        for name, requests in (("short texts, 17 tokens", short), ("mixed texts", mixed)):
            for in_flight in IN_FLIGHT:
                title = f"One text a request, {name}, {in_flight} in flight"
                await compare(title, calls, here, requests, in_flight, rounds, seconds)
        await compare("Requests of 32 mixed texts", calls, here, bulk, 1, rounds, seconds * 2)
    print_naive(here, bulk, seconds)


async def compare(
    title: str,
    calls: dict[str, Call],
    here: InProcess,
    requests: Sequence[Sequence[str]],
    in_flight: int,
    rounds: int,
    seconds: float,
) -> None:
    """Measure all ways in turn, `rounds` times, and print one table."""
    samples: dict[str, Samples] = defaultdict(Samples)
    references = []
    texts = [text for request in requests for text in request]
    for turn in range(rounds):
        at = turn * BATCH % len(texts)
        # In a thread: a blocked event loop would not notice connections that the server closes.
        reference = await asyncio.to_thread(here.per_second, texts[at:] + texts[:at], seconds)
        references.append(reference)
        for name, call in calls.items():
            per_second, latencies = await drive(call, requests, in_flight, seconds)
            samples[name].per_second.append(per_second)
            samples[name].ratios.append(per_second / reference)
            samples[name].latencies += latencies
    rows = [[name, *found.row()] for name, found in samples.items()]
    ours = [f"{statistics.median(references):.0f}", "1", "", ""]
    header = ["way", "sentences/s", "of in-process", "p50 ms", "p99 ms"]
    setting.print_table(title, header, [["in process, batches of 32", *ours], *rows])


def print_naive(here: InProcess, bulk: Sequence[Sequence[str]], seconds: float) -> None:
    """In process: our sub-batches against padding all 32 texts to the longest."""
    ours, naive = [], []
    for texts in bulk:
        ours.append(here.per_second(texts, seconds / 4))
        naive.append(here.per_second(texts, seconds / 4, naive=True))
    rows = [
        ["sub-batches", f"{statistics.mean(ours):.0f}"],
        ["padded to the longest", f"{statistics.mean(naive):.0f}"],
    ]
    setting.print_table("32 mixed texts in process", ["how", "sentences/s"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.throughput`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per way and round")
    options = parser.parse_args(arguments)
    setting.print_machine()
    with setting.running_service() as service:
        asyncio.run(measure(service, rounds=options.rounds, seconds=options.seconds))


if __name__ == "__main__":
    main()
