"""HTTP requests whose server dies or whose client leaves, with the whole product running."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.prepared import TINY, copied
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

V2 = f"/v2/models/{TINY}/infer"
REST = f"/api/v1/infer/{TINY}"
V2_BODY = {
    "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["hello"]}]
}
REST_BODY = {"input_data": {"text": "hello"}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, installed_home: Path) -> Iterator[Service]:
    running = Service(copied(installed_home, tmp_path_factory.mktemp("http-faults") / "own"))
    try:
        with running.start().client() as client:
            client.load(TINY)
        yield running
    finally:
        running.end()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def active(service: Service) -> int:
    """Requests that hold the model."""
    with service.client() as client:
        loaded = client.status().loaded_models
        return next((m.active_requests for m in loaded if m.model_id == TINY), 0)


@contextlib.contextmanager
def stopped(service: Service) -> Iterator[None]:
    """Triton and the model's process stand still meanwhile: a request stays under way."""
    family = [p for p in service.family() if "triton" in p.name()]
    assert len(family) == 2
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in family:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("path", "body", "known", "told"),
    [
        (V2, V2_BODY, "model_name", "request is sent once more"),
        (REST, REST_BODY, "output_data", "request is run once more"),
    ],
    ids=["v2", "rest"],
)
def test_kill_9_of_triton_with_a_request_under_way_is_not_seen_by_its_client(
    service: Service, path: str, body: dict[str, object], known: str, told: str
) -> None:
    answers: list[httpx.Response] = []

    def call() -> None:
        answers.append(httpx.post(service.url + path, json=body, timeout=90))

    httpx.post(service.url + path, json=body, timeout=60).raise_for_status()
    thread = threading.Thread(target=call)
    with stopped(service):
        thread.start()
        until(lambda: active(service) == 1)
        (triton,) = [p for p in service.family() if p.name() == "tritonserver"]
        triton.kill()
    thread.join(120)
    (answer,) = answers
    assert answer.status_code == 200
    assert known in answer.json()
    assert told in service.log


@pytest.mark.parametrize(("path", "body"), [(V2, V2_BODY), (REST, REST_BODY)])
def test_a_client_that_leaves_takes_its_lease_along(
    service: Service, path: str, body: dict[str, object]
) -> None:
    httpx.post(service.url + path, json=body, timeout=60).raise_for_status()
    address = urlsplit(service.url)
    sent = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(sent)}\r\n\r\n"
    )
    with stopped(service):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + sent)
            until(lambda: active(service) == 1)
        until(lambda: active(service) == 0, seconds=5.0)
    httpx.post(service.url + path, json=body, timeout=60).raise_for_status()


# the last test: what is dead stays a zombie of Triton's
def test_a_rest_request_that_meets_a_dead_process_is_run_once_more(service: Service) -> None:
    httpx.post(service.url + REST, json=REST_BODY, timeout=60).raise_for_status()
    before = service.log.count("request is run once more")
    (stub,) = [p for p in service.family() if "stub" in p.name()]
    (triton,) = [p for p in service.family() if p.name() == "tritonserver"]
    triton.send_signal(signal.SIGSTOP)  # the request is there before the death can be seen
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(service.url + REST, json=REST_BODY, timeout=90))
    )
    try:
        thread.start()
        until(lambda: active(service) == 1)
        stub.kill()
    finally:
        triton.send_signal(signal.SIGCONT)
    thread.join(120)
    (answer,) = answers
    assert answer.status_code == 200, answer.text
    assert service.log.count("request is run once more") == before + 1
