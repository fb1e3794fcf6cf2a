"""Bad input, as a user would send it: one envelope, the field and the fix named, nothing broken."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import MINILM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

INFER = f"/api/v1/infer/{MINILM}"
V2_INFER = f"/v2/models/{MINILM}/infer"


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client
    # Whatever was sent: the service still does its job.
    answer = httpx.post(
        f"{service.url}{INFER}", json={"input_data": {"text": "still here"}}, timeout=30
    )
    assert answer.status_code == 200, answer.text


def error_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["trace_id"] == answer.headers["X-Trace-Id"]
    return error


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"input_data": {"text": 5}}, 400, "VALIDATION_ERROR", "input_data.text"),
        ({"input_data": {}}, 400, "VALIDATION_ERROR", "input_data.text"),
        ({}, 400, "VALIDATION_ERROR", "input_data"),
        ({"input_data": "hi"}, 400, "VALIDATION_ERROR", "input_data"),
        ({"input_data": {"text": "x" * 100_001}}, 400, "VALIDATION_ERROR", "input_data.text"),
        ({"input_data": {"text": ["a"] * 10_000}}, 400, "BATCH_SIZE_EXCEEDED", "input_data.text"),
        ({"input_data": {"text": "a"}, "priority": "x"}, 400, "VALIDATION_ERROR", "priority"),
        (
            {"input_data": {"text": "a"}, "timeout_seconds": 601},
            400,
            "VALIDATION_ERROR",
            "timeout_seconds",
        ),
        ({"input_data": {"text": "a"}, "speed": 9}, 400, "VALIDATION_ERROR", "speed"),
    ],
)
def test_a_wrong_inference_request_names_the_field(
    http: httpx.Client, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    error = error_of(http.post(INFER, json=body), status, code)
    assert field in error["details"]["fields"]


@pytest.mark.parametrize("raw", [b"{", b"", b"[1,2", b'{"input_data": {"text": "\xff\xfe"}}'])
def test_malformed_json_is_refused(http: httpx.Client, raw: bytes) -> None:
    answer = http.post(INFER, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "VALIDATION_ERROR"


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    body = {"input_data": {"text": "a"}}
    error_of(http.post("/api/v1/infer/no/such", json=body), 404, "MODEL_NOT_FOUND")
    error_of(http.get("/api/v1/models/no/such"), 404, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("model_id", ["gpt2", "a/b/c", "a--b/c", "../etc", "a/ b", "", "a/b" * 200])
def test_a_wrong_model_id_is_refused(http: httpx.Client, model_id: str) -> None:
    answer = http.post("/api/v1/models", json={"model_id": model_id, "task_type": "txt2embed"})
    error_of(answer, 400, "INVALID_MODEL_ID")


@pytest.mark.parametrize("task", ["txt2mars", ""])
def test_a_task_that_cannot_be_served_is_refused(http: httpx.Client, task: str) -> None:
    answer = http.post("/api/v1/models", json={"model_id": "a/b", "task_type": task})
    assert "txt2embed" in error_of(answer, 400, "INVALID_TASK_TYPE")["message"]


def test_registering_twice_is_a_conflict(http: httpx.Client) -> None:
    body = {"model_id": MINILM, "task_type": "txt2embed"}
    error_of(http.post("/api/v1/models", json=body), 409, "MODEL_ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/v1/nothing", 404), ("PATCH", "/api/v1/models", 405), ("GET", INFER, 405)],
)
def test_unknown_routes_answer_in_the_envelope(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["trace_id"] == answer.headers["X-Trace-Id"]


def test_deleting_a_loaded_model_needs_force(http: httpx.Client) -> None:
    assert http.post(INFER, json={"input_data": {"text": "a"}}).status_code == 200
    error_of(http.delete(f"/api/v1/models/{MINILM}"), 409, "MODEL_ALREADY_LOADED")


@pytest.mark.parametrize(
    "body",
    [
        # This one kills an unguarded Triton, every time (triton-facts).
        '{"inputs":[{"name":"text_input","shape":[1,4611686018427387904],"datatype":"BYTES","data":["a"]}]}',
        '{"inputs":[{"name":"text_input","shape":[2,1],"datatype":"BYTES","data":["a"]}]}',
        '{"inputs":[{"name":"text_input","shape":[-1,1],"datatype":"BYTES","data":["a"]}]}',
        '{"inputs":[{"name":"text_input","shape":[1,1],"datatype":"FP99","data":["a"]}]}',
        '{"inputs":[{"name":"text_input","shape":"1","datatype":"BYTES","data":["a"]}]}',
        '{"inputs":[{"shape":[1,1],"datatype":"BYTES","data":["a"]}]}',
        '{"inputs": {}}',
        "{}",
        '{"inputs":[',
        "[]",
        "null",
    ],
)
def test_a_faulty_v2_body_is_refused_and_triton_lives(http: httpx.Client, body: str) -> None:
    answer = http.post(V2_INFER, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["error"], str)  # Triton's form


def test_v2_of_an_unknown_model_is_404(http: httpx.Client) -> None:
    answer = http.get("/v2/models/no/such")
    assert answer.status_code == 404
    assert "no/such" in answer.json()["error"]


def test_grpc_errors_have_their_codes(service: Service) -> None:
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    tensor = triton_grpc.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"hi"]], dtype=np.object_))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("no--such", [tensor])
    assert "NOT_FOUND" in caught.value.status()
    bad = triton_grpc.InferInput("text_input", [1, 1], "BYTES")
    bad.set_data_from_numpy(np.array([[b"\xff\xfe"]], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="UTF-8"):
        client.infer(MINILM, [bad])
    wide = triton_grpc.InferInput("text_input", [40, 1], "BYTES")
    wide.set_data_from_numpy(np.array([[b"a"]] * 40, dtype=np.object_))
    with pytest.raises(InferenceServerException, match="32"):
        client.infer(MINILM, [wide])
    client.close()


def test_garbage_on_both_ports_hurts_nobody(service: Service, http: httpx.Client) -> None:
    for address in (service.url.removeprefix("http://"), service.grpc_url):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"\x00\xff\x13 garbage \r\n\r\n" * 50)
