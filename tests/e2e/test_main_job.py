"""The main job: a HuggingFace model id is an endpoint for plain clients, loaded when asked for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
from sentence_transformers import SentenceTransformer

from tests.e2e.conftest import MINILM, minilm_dir

if TYPE_CHECKING:
    from tests.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

NAME = MINILM.replace("/", "--")
TEXTS = ["A cat sits on the mat.", "Eine Katze sitzt.", "Stock prices fell sharply.", "", "🙂 ok"]


@pytest.fixture(scope="session")
def expected() -> np.ndarray[Any, Any]:
    """sentence-transformers' own vectors for TEXTS."""
    model = SentenceTransformer(str(minilm_dir()), device="cpu")
    vectors: np.ndarray[Any, Any] = model.encode(TEXTS)
    return vectors


def unload(service: Service) -> None:
    with service.client() as client:
        if client.status().loaded_models:
            client.unload(MINILM)


def grpc_input(texts: list[str]) -> list[triton_grpc.InferInput]:
    tensor = triton_grpc.InferInput("text_input", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[t.encode()] for t in texts], dtype=np.object_))
    return [tensor]


def cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = np.sum(a * b, 1) / (
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    )
    return result


@pytest.mark.torch
def test_a_plain_grpc_client_loads_the_model_and_gets_sentence_transformers_vectors(
    service: Service, expected: np.ndarray[Any, Any]
) -> None:
    unload(service)
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    result = client.infer(NAME, grpc_input(TEXTS))
    client.close()
    vectors = result.as_numpy("embedding")
    assert vectors.shape == (len(TEXTS), 384)
    assert cosines(vectors, expected).min() > 0.9999


@pytest.mark.torch
@pytest.mark.parametrize("binary", [True, False])
def test_a_plain_http_client_loads_the_model_and_gets_the_same_vectors(
    service: Service, expected: np.ndarray[Any, Any], binary: bool
) -> None:
    unload(service)
    client = triton_http.InferenceServerClient(service.url.removeprefix("http://"))
    tensor = triton_http.InferInput("text_input", [len(TEXTS), 1], "BYTES")
    data = np.array([[t.encode()] for t in TEXTS], dtype=np.object_)
    tensor.set_data_from_numpy(data, binary_data=binary)
    output = triton_http.InferRequestedOutput("embedding", binary_data=binary)
    vectors = client.infer(NAME, [tensor], outputs=[output]).as_numpy("embedding")
    client.close()
    assert cosines(vectors, expected).min() > 0.9999


@pytest.mark.parametrize("spelling", [MINILM, NAME])
def test_both_spellings_and_the_version_string_work_over_grpc(
    service: Service, spelling: str
) -> None:
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    assert client.is_server_ready()
    assert client.is_model_ready(spelling)
    assert client.get_model_metadata(spelling).outputs[0].name == "embedding"
    result = client.infer(spelling, grpc_input(["hi"]), model_version="main", request_id="r7")
    assert result.get_response().id == "r7"
    client.close()


async def test_a_hundred_first_requests_cause_one_load(service: Service) -> None:
    unload(service)
    before = service.log.count('"model.load.requested"') + metric(
        service, "modelmora_model_loads_total"
    )
    client = triton_grpc_aio.InferenceServerClient(service.grpc_url)
    results = await asyncio.gather(*(client.infer(NAME, grpc_input(["hi"])) for _ in range(100)))
    await client.close()
    assert len(results) == 100
    after = service.log.count('"model.load.requested"') + metric(
        service, "modelmora_model_loads_total"
    )
    assert after - before == 1


def metric(service: Service, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics").text
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(name + "{")]
    return sum(map(float, values))


@pytest.mark.torch
def test_rest_gives_the_same_vectors_for_one_text_and_for_a_long_list(
    service: Service, expected: np.ndarray[Any, Any]
) -> None:
    with service.client() as client:
        one = client.infer(MINILM, {"text": TEXTS[0]})
        many = client.infer(MINILM, {"text": [t for t in TEXTS if t] * 20})
    assert cosines(np.array([one.output_data["embedding"]]), expected[:1]).min() > 0.9999
    vectors = np.array(many.output_data["embeddings"])
    assert vectors.shape == (80, 384)
    wanted = np.concatenate([expected[[0, 1, 2, 4]]] * 20)
    assert cosines(vectors, wanted).min() > 0.9999


def test_the_registry_tells_what_was_installed(service: Service) -> None:
    model = httpx.get(f"{service.url}/api/v1/models/{MINILM}").json()
    assert model["status"] == "ready"
    assert model["checksum"].startswith("sha256:")
    assert model["artefact"]["dimension"] == 384
    assert model["artefact"]["parity"]["min_cosine"] >= 0.9999
    encoded = httpx.get(f"{service.url}/api/v1/models/{MINILM.replace('/', '%2F')}").json()
    assert encoded["id"] == model["id"]


def test_the_command_line_does_the_same(service: Service) -> None:
    unload(service)
    run = subprocess.run(
        [sys.executable, "-m", "controlplane", "infer", MINILM, "hello", "--json"],
        capture_output=True,
        text=True,
        env={**service.environment(), "MODELMORA_URL": service.url},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert '"embedding' in run.stdout


def test_neither_the_control_plane_nor_the_stub_holds_torch(service: Service) -> None:
    with service.client() as client:
        client.infer(MINILM, {"text": "hi"})
        (loaded,) = client.status().loaded_models
    assert service.process is not None
    for pid in (service.process.pid, loaded.process_id):
        with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123
            held = maps.read()
        assert "libtorch" not in held
    with open(f"/proc/{service.process.pid}/maps") as maps:  # noqa: PTH123
        assert "onnxruntime" not in maps.read()
