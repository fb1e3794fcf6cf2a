"""Thirty models, room for five, thirty-two clients, and processes that die at random."""

from __future__ import annotations

import random
import signal
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from prometheus_client.parser import text_string_to_metric_families

from tests.service import Service
from tests.triton_models import TritonModels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

MODELS = 30
ROOM = 5
CLIENTS = 32
SECONDS = 60.0
BETWEEN_KILLS = (2.0, 5.0)
# Each model holds that much besides its interpreter, so that the budget is about data.
BALLAST_MB = 40
# Long: that nobody is failed is the subject, not how soon a slow machine answers thirty-two.
REQUEST_SECONDS = 180.0
SEED = 20261123


@dataclass(frozen=True)
class Request:
    """One request of a client, as it went."""

    model: str
    began: float
    ended: float
    failure: str = ""


@dataclass(frozen=True)
class Kill:
    """A process that was killed; `model` is empty for Triton itself."""

    at: float
    model: str


@dataclass
class Record:
    """What happened, written by many threads (appending to a list is atomic)."""

    requests: list[Request] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def unexplained(self) -> list[Request]:
        """Failures of requests that cannot have been running in a process that was killed."""
        return [r for r in self.requests if r.failure and not self._was_hit(r)]

    def _was_hit(self, request: Request) -> bool:
        return any(
            request.began <= kill.at <= request.ended and kill.model in ("", request.model)
            for kill in self.kills
        )


class Client(threading.Thread, ABC):
    """Asks for one model after the other, as fast as it is answered."""

    def __init__(
        self, record: Record, done: threading.Event, choose: Callable[[], str], number: int
    ) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._record, self._done, self._choose = record, done, choose
        self._text = f"text of client {number}"

    def run(self) -> None:
        while not self._done.is_set():
            model, began, failure = self._choose(), time.monotonic(), ""
            try:
                answer = self.ask(model, self._text)
            except Exception as error:  # noqa: BLE001 whatever it is, it failed the request
                failure = f"{type(error).__name__}: {error}"
            else:
                failure = "" if answer == self._text else f"another's answer: {answer}"
            self._record.requests.append(Request(model, began, time.monotonic(), failure))

    @abstractmethod
    def ask(self, model: str, text: str) -> str:
        """What the model answers to the text."""


class GrpcClient(Client):
    def __init__(self, url: str, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._client = triton_grpc.InferenceServerClient(url)

    def ask(self, model: str, text: str) -> str:
        tensor = triton_grpc.InferInput("text_input", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        answer = self._client.infer(model, [tensor], client_timeout=REQUEST_SECONDS)
        return str(answer.as_numpy("text_output")[0, 0].decode())


class HttpClient(Client):
    def __init__(self, url: str, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._url = url.removeprefix("http://")

    def run(self) -> None:
        # Its connections belong to the thread that made them.
        self._client = triton_http.InferenceServerClient(
            self._url, network_timeout=REQUEST_SECONDS, connection_timeout=REQUEST_SECONDS
        )
        super().run()
        self._client.close()

    def ask(self, model: str, text: str) -> str:
        tensor = triton_http.InferInput("text_input", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        answer = self._client.infer(model, [tensor])
        return str(answer.as_numpy("text_output")[0, 0].decode())


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [f"chaos/model-{number:02}" for number in range(MODELS)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Iterator[Service]:
    """A running server with all models installed and a budget for five of them."""
    home = tmp_path_factory.mktemp("chaos")
    service = Service(home / "own", MAX_MODELS=str(MODELS), REQUEST_TIMEOUT=str(REQUEST_SECONDS))

    def measured(name: str) -> float:
        with service.client() as client:
            client.install(name, source_url=model_folder(home, name).as_uri(), timeout=120)
            # So that the budget is held against measurements, not estimates.
            return client.load(name).memory_usage_mb

    try:
        service.start()
        with ThreadPoolExecutor(4) as pool:
            sizes = list(pool.map(measured, names))
        service.stop()
        service.settings["MAX_MEMORY_MB"] = str(round(max(sizes) * (ROOM + 0.4)))
        yield service.start()
    finally:
        service.end()


def model_folder(home: Path, name: str) -> Path:
    """A ready Triton model that echoes text and holds some memory."""
    models = TritonModels(home / "sources")
    ballast = f"self.ballast = np.ones({BALLAST_MB} * 2**20, np.uint8)"
    models.write(name.replace("/", "--"), initialize=ballast)
    return models.root / name.replace("/", "--")


@pytest.mark.timeout(600)
def test_nobody_is_failed_by_what_dies_elsewhere(service: Service, names: list[str]) -> None:
    record, done = Record(), threading.Event()
    chance = random.Random(SEED)
    clients = [
        (GrpcClient if number % 2 else HttpClient)(
            service.grpc_url if number % 2 else service.url,
            record,
            done,
            chooser(names, number),
            number,
        )
        for number in range(CLIENTS)
    ]
    watcher = threading.Thread(target=watch_memory, args=(service, record, done), daemon=True)
    for thread in (*clients, watcher):
        thread.start()
    kill_at_random(service, record, chance, time.monotonic() + SECONDS)
    done.set()
    for thread in (*clients, watcher):
        thread.join(REQUEST_SECONDS + 10)
        assert not thread.is_alive(), f"{thread.name} still waits for an answer"
    report(service, record)
    assert not record.unexplained(), explain(record)
    budget = float(service.settings["MAX_MEMORY_MB"])
    assert record.memory
    assert max(ledger for ledger, _ in record.memory) <= budget
    assert max(real for _, real in record.memory) <= budget
    everybody_answers(service, names)


def chooser(names: list[str], number: int) -> Callable[[], str]:
    """Uniform popularity for one half of the clients, a few favourites for the other."""
    chance = random.Random(SEED + number)
    if number // 2 % 2:
        return lambda: chance.choice(names)
    weights = [1 / (rank + 1) for rank in range(len(names))]
    return lambda: chance.choices(names, weights)[0]


def kill_at_random(service: Service, record: Record, chance: random.Random, end: float) -> None:
    """Every few seconds a stub, and twice Triton itself, until `end`."""
    triton_at = [end - SECONDS * 0.6, end - SECONDS * 0.25]
    while (now := time.monotonic()) < end:
        pause = chance.uniform(*BETWEEN_KILLS)
        time.sleep(min(pause, max(end - now, 0)))  # the chaos itself, not a wait
        processes = service.family()
        if triton_at and time.monotonic() > triton_at[0]:
            triton_at.pop(0)
            victims = [p for p in processes if name_of(p) == "tritonserver"]
        else:
            victims = [p for p in processes if model_of(p)]
        if victims and time.monotonic() < end:
            kill(chance.choice(victims), record)


def kill(victim: psutil.Process, record: Record) -> None:
    model = model_of(victim)
    try:
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
    record.kills.append(Kill(time.monotonic(), model))


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def model_of(process: psutil.Process) -> str:
    """The model id a stub process serves, "" for other processes."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    if not command or "triton_python_backend_stub" not in command[0]:
        return ""
    return next((part.split("/")[-3] for part in command if part.endswith("model.py")), "").replace(
        "--", "/"
    )


def watch_memory(service: Service, record: Record, done: threading.Event) -> None:
    """What the ledger says and what the stubs really hold, some times a second."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        while not done.wait(0.2):
            memory = client.get("/api/v1/status").raise_for_status().json()["memory"]
            real = sum(proportional_set_mb(p) for p in service.family() if model_of(p))
            record.memory.append((memory["used_mb"], real))


def proportional_set_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.Error:
        return 0.0


def everybody_answers(service: Service, names: list[str]) -> None:
    client = GrpcClient(service.grpc_url, Record(), threading.Event(), lambda: "", 99)
    with ThreadPoolExecutor(ROOM) as pool:
        assert list(pool.map(lambda name: client.ask(name, name), names)) == names


def report(service: Service, record: Record) -> None:
    """Printed with `pytest -s`; docs/benchmarks.md has the figures of one run."""
    seconds = sorted(r.ended - r.began for r in record.requests if not r.failure)
    percentiles = statistics.quantiles(seconds, n=100)
    print(
        f"\n{len(record.requests)} requests, {sum(bool(r.failure) for r in record.requests)} failed"
        f" ({len(record.unexplained())} unexplained), {len(record.kills)} kills;"
        f" p50 {percentiles[49]:.2f} s, p99 {percentiles[98]:.2f} s;"
        f" memory {max(m for m, _ in record.memory):.0f} MB in the ledger,"
        f" {max(m for _, m in record.memory):.0f} MB real,"
        f" budget {service.settings['MAX_MEMORY_MB']} MB; {evictions(service):.0f} evictions"
    )


def explain(record: Record) -> str:
    """The failures, with what was killed and when, in seconds since the first request."""
    start = min(request.began for request in record.requests)
    failures = [
        f"{r.began - start:.2f} to {r.ended - start:.2f} {r.model}: {r.failure}"
        for r in record.unexplained()
    ]
    kills = [f"{kill.at - start:.2f} {kill.model or 'Triton'}" for kill in record.kills]
    counts = Counter(r.failure.partition(":")[0] for r in record.unexplained())
    return "\n".join([str(counts), *failures, "killed:", *kills])


def evictions(service: Service) -> float:
    text = httpx.get(f"{service.url}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "modelmora_model_evictions_total"
    )
