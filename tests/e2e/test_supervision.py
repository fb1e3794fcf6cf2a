"""Triton killed, stopped, hanging; the service drained, interrupted, killed: nothing stays."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from controlplane.lifecycle.memory import alive
from controlplane.triton.processes import SHARED_MEMORY, instance_prefix
from tests.prepared import TINY, copied
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

DRAIN = 60  # seconds that a service of the test's own gives to what runs when it is told to stop


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, installed_home: Path) -> Iterator[Service]:
    """A service with a model, for tests that leave it running."""
    home = copied(installed_home, tmp_path_factory.mktemp("shared") / "home")
    service = Service(home, TRITON_HANG_TIMEOUT="5")
    try:
        yield service.start()
    finally:
        service.end()


@pytest.fixture
def own(tmp_path: Path, installed_home: Path) -> Iterator[Service]:
    """A service with a model of the test's own."""
    service = Service(copied(installed_home, tmp_path / "own"), DRAIN_TIMEOUT=str(DRAIN))
    try:
        yield service.start()
    finally:
        service.end()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def tritons(service: Service) -> list[psutil.Process]:
    return [process for process in service.family() if process.name() == "tritonserver"]


def triton_of(service: Service) -> psutil.Process:
    (process,) = tritons(service)
    return process


def stub_of(service: Service) -> psutil.Process:
    (stub,) = [p for p in service.family() if p.name() == "triton_python_backend_stub"]
    return stub


def leftovers(service: Service) -> list[str]:
    """Shared memory and processes of the service's Triton."""
    prefix = instance_prefix(service.data_dir / "triton")
    files = [path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(prefix)]
    marked = [
        str(process.pid)
        for process in psutil.process_iter(["cmdline"])
        if any(prefix in part for part in process.info["cmdline"] or ())
    ]
    return files + marked


def ask(service: Service, texts: int = 1, length: int = 1, timeout: float = 60) -> httpx.Response:
    body = {"input_data": {"text": ["a long text " * length] * texts}}
    return httpx.post(f"{service.url}/api/v1/infer/{TINY}", json=body, timeout=timeout)


def ready(service: Service) -> httpx.Response:
    return httpx.get(f"{service.url}/health/ready", timeout=20)


class Asking:
    """Clients that ask all the time, each on its own connection; what they were answered."""

    def __init__(self, service: Service, clients: int = 3) -> None:
        self.answers: list[int] = []
        self._ended = threading.Event()
        self._service = service
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._ended.is_set():
            self.answers.append(ask(self._service).status_code)

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) >= 5)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def failed(self) -> int:
        return sum(status != 200 for status in self.answers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_triton_that_dies_stops_or_hangs_comes_back_with_its_models(
    shared: Service, number: signal.Signals
) -> None:
    ask(shared)
    triton, stub = triton_of(shared), stub_of(shared)
    with Asking(shared) as asking:
        triton.send_signal(number)
        psutil.wait_procs([triton, stub], timeout=30)
        assert not triton.is_running()
        answered = len(asking.answers)
        until(lambda: asking.answers[-3:] == [200] * 3 and len(asking.answers) > answered + 10)
    # Those that ran in it fail at once, at most one of each client; the others have waited.
    assert asking.failed <= 3
    assert ready(shared).status_code == 200
    assert triton_of(shared).pid != triton.pid
    prefix = instance_prefix(shared.data_dir / "triton")
    marked = [p for p in shared.family() if any(prefix in part for part in p.cmdline())]
    assert len(marked) == 2  # the new server and the new stub


def test_models_come_back_without_being_asked_for(shared: Service) -> None:
    ask(shared)
    triton_of(shared).kill()

    def back() -> bool:
        with shared.client() as client:
            loaded = client.status().loaded_models
        return [model.state for model in loaded] == ["loaded"]

    until(lambda: ready(shared).status_code == 503)
    until(back)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_model_whose_process_dies_or_hangs_is_healed_without_a_restart_of_triton(
    shared: Service, number: signal.Signals
) -> None:
    ask(shared)
    triton, stub = triton_of(shared), stub_of(shared)
    with Asking(shared) as asking:
        stub.send_signal(number)
        until(lambda: not alive(stub.pid))
        answered = len(asking.answers)
        until(lambda: asking.answers[-3:] == [200] * 3 and len(asking.answers) > answered + 10)
    assert triton_of(shared).pid == triton.pid
    assert stub_of(shared).pid != stub.pid


def test_the_memory_of_a_model_is_on_record(shared: Service) -> None:
    ask(shared)
    with shared.client() as client:
        page = client.memory(TINY)
        assert page.pagination.total_items == len(page.data) > 0
        assert page.data[-1].reason == "load"
        assert 5 < page.data[-1].used_mb < 500
        assert client.memory(TINY, "main", page_size=1).pagination.page_size == 1
    answer = httpx.get(f"{shared.url}/api/v1/models/{TINY}/memory", params={"page_size": 0})
    assert answer.status_code == 400
    assert "page_size" in answer.json()["error"]["details"]["fields"]


class LongRequests:
    """Requests that are under way."""

    def __init__(self, service: Service, count: int = 4) -> None:
        self.answers: list[int | str] = []
        self._service = service
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        self._count = count

    def _ask(self) -> None:
        try:
            self.answers.append(ask(self._service, 1024, 200).status_code)
        except httpx.TransportError as error:
            self.answers.append(type(error).__name__)

    def __enter__(self) -> LongRequests:
        for thread in self._threads:
            thread.start()
        with self._service.client() as client:

            def active() -> int:
                return sum(m.active_requests or 0 for m in client.status().loaded_models)

            until(lambda: active() == self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(60)


def test_sigterm_refuses_what_is_new_and_finishes_what_runs(own: Service) -> None:
    ask(own)
    family = own.family()
    process = own.process
    assert process is not None
    client = triton_grpc.InferenceServerClient(own.grpc_url)
    assert client.is_server_ready()
    with LongRequests(own) as long:
        process.send_signal(signal.SIGTERM)
        until(lambda: ready(own).status_code == 503)
        assert ready(own).json()["checks"] == {"service": "is stopping"}
        refused = ask(own)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "SERVICE_UNAVAILABLE"
        assert refused.headers["Retry-After"]
        assert refused.headers["Connection"] == "close"
        v2 = httpx.post(f"{own.url}/v2/models/{TINY}/infer", json={"inputs": []})
        assert (v2.status_code, v2.json()) == (503, {"error": "The service is stopping."})
        assert httpx.get(f"{own.url}/health/live").status_code == 200
        tensor = triton_grpc.InferInput("text_input", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"late"]], dtype=np.object_))
        with pytest.raises(Exception, match="UNAVAILABLE"):
            client.infer(TINY, [tensor])
    assert long.answers == [200] * 4
    assert process.wait(60) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]
    client.close()


def test_what_does_not_end_in_time_is_cut_off(own: Service) -> None:
    own.stop()
    own.settings["DRAIN_TIMEOUT"] = "0.2"
    own.start()
    ask(own)
    with LongRequests(own) as long:
        assert own.stop() == 0
    assert 200 not in long.answers


def test_a_second_signal_ends_it_at_once_and_leaves_nothing(own: Service) -> None:
    ask(own)
    family = own.family()
    process = own.process
    assert process is not None
    with LongRequests(own) as long:
        process.send_signal(signal.SIGTERM)
        until(lambda: ready(own).status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DRAIN / 4) == 130
    assert 200 not in long.answers
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert leftovers(own) == []
    assert not (own.data_dir / "server.json").exists()


def test_stopping_with_a_triton_that_hangs(own: Service) -> None:
    ask(own)
    triton_of(own).suspend()
    assert own.stop() == 0
    assert leftovers(own) == []


def test_kill_9_with_a_triton_that_hangs_is_cleared_by_the_next_start(own: Service) -> None:
    ask(own)
    family, triton = own.family(), triton_of(own)
    triton.suspend()
    own.kill()
    own.start()
    assert not psutil.wait_procs(family, timeout=15)[1]
    assert ask(own).status_code == 200
    assert own.stop() == 0
    assert leftovers(own) == []


def test_models_that_fail_to_load_say_why_wherever_one_looks(own: Service) -> None:
    (home,) = (own.model_repository / TINY.replace("/", "--")).glob("[0-9]*")
    broken = next(home.rglob("*.onnx"))
    broken.write_bytes(b"no model at all")
    answer = ask(own)
    assert answer.status_code == 500
    reason = answer.json()["error"]["message"]
    again = ask(own)  # at once: it is not tried again before its time
    assert again.json()["error"]["message"] == reason
    assert again.headers["Retry-After"]
    with own.client() as client:
        (shown,) = client.status().loaded_models
        assert shown.state == "failed"
        assert shown.health_status is not None
    models = httpx.get(f"{own.url}/health/models").json()["models"]
    assert models[0]["error"] == reason
