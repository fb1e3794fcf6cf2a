"""Text out of the product: installed by id from a hub, without a task, asked by plain clients."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from tests import generation_models as tiny
from tests import models
from tests.hub import LocalHub
from tests.service import Service
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.torch]

LLAMA, BLIP, BERT = "tiny/llama", "tiny/blip", "tiny/bert"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("generation-sources")
    # Its context has room for answers that last some seconds; its weights are bfloat16 in several
    # files, as those of most large models are.
    tiny.tiny_llama(folder / "llama", shard="20KB", stored="bfloat16", max_position_embeddings=4096)
    models.shard(models.tiny_bert(folder / "bert"), "20KB")
    tiny.tiny_blip(folder / "blip")
    return folder


@pytest.fixture(scope="module")
def service(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        hub.add(LLAMA, sources / "llama")
        hub.add(BLIP, sources / "blip")
        hub.add(BERT, sources / "bert")
        home = tmp_path_factory.mktemp("generation")
        running = Service(home, forking=True).start()
        try:
            with running.client() as client:
                for model in (LLAMA, BLIP, BERT):
                    client.install(model, timeout=120)
            yield running
        finally:
            running.end()


@pytest.fixture(scope="module")
def expected(service: Service, sources: Path) -> str:
    """transformers' own greedy continuation of "a river", 24 tokens, in the precision served."""
    import torch
    import transformers

    served = httpx.get(f"{service.url}/api/v1/models/{LLAMA}").json()["artefact"]["precision"]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[served]
    tokenizer = transformers.AutoTokenizer.from_pretrained(sources / "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(sources / "llama", dtype=dtype)
    inputs = tokenizer("a river", return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
    text: str = tokenizer.decode(output[inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return text


def test_the_tasks_were_read_from_the_files(service: Service) -> None:
    tasks = {
        model: httpx.get(f"{service.url}/api/v1/models/{model}").json()["task_type"]
        for model in (LLAMA, BLIP)
    }
    assert tasks == {LLAMA: "txt2txt", BLIP: "img2txt"}


def test_a_plain_grpc_client_streams_text(service: Service, expected: str) -> None:
    heard: list[Any] = []
    over = threading.Event()

    def on_response(result: Any, error: Any) -> None:
        heard.append(error or result)
        if error or "finish_reason" in {o.name for o in result.get_response().outputs}:
            over.set()

    tensor = triton_grpc.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a river"], dtype=np.object_))
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    client.start_stream(on_response)
    asked = {"max_tokens": 24, "stream": True}
    client.async_stream_infer(LLAMA.replace("/", "--"), [tensor], parameters=asked)
    assert over.wait(60)
    client.stop_stream()
    client.close()
    assert b"".join(each.as_numpy("text_output")[0] for each in heard).decode() == expected
    assert len(heard) > 5


def test_generate_and_generate_stream_through_the_gateway(service: Service, expected: str) -> None:
    base = f"{service.url}/v2/models/{LLAMA.replace('/', '--')}"
    whole = httpx.post(
        f"{base}/generate", json={"text_input": "a river", "max_tokens": 24}, timeout=60
    )
    assert whole.json()["text_output"] == expected
    body = {"text_input": "a river", "parameters": {"max_tokens": 24, "stream": True}}
    with httpx.stream("POST", f"{base}/generate_stream", json=body, timeout=60) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert "".join(event["text_output"] for event in events) == expected
    assert events[-1]["finish_reason"] == "length"
    assert len(events) > 5
    faulty = httpx.post(f"{base}/generate", json={"text_input": "a", "max_tokens": -1}, timeout=60)
    assert faulty.status_code == 400
    assert "max_tokens must be a whole number" in faulty.text


def test_what_only_the_model_knows_to_be_wrong_is_the_clients_fault(service: Service) -> None:
    body = {"input_data": {"prompt": "river " * 9000}}
    answer = httpx.post(f"{service.url}/api/v1/infer/{LLAMA}", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_INPUT"
    assert "tokens" in answer.json()["error"]["message"]


def test_weights_in_several_files_are_all_there(service: Service, sources: Path) -> None:
    """Those of the Llama are, since it writes what transformers does with it."""
    import torch
    import transformers

    for name in ("llama", "bert"):
        shards = list((sources / name).glob("model-*-of-*.safetensors"))
        assert len(shards) > 2
        assert not (sources / name / "model.safetensors").exists()
    tensor = triton_grpc.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"the cat plays"]], dtype=np.object_))
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    found = client.infer(BERT.replace("/", "--"), [tensor]).as_numpy("embedding")[0]
    client.close()
    model = transformers.AutoModel.from_pretrained(sources / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(sources / "bert")
    with torch.inference_mode():
        states = model(**tokenizer("the cat plays", return_tensors="pt")).last_hidden_state
    mean = states[0].mean(0).numpy()
    assert float(found @ mean) / float(np.linalg.norm(mean)) > 0.9999


def test_an_image_is_described(service: Service) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.radial_gradient("L").resize((50, 40)).convert("RGB").save(file, "JPEG")
    tensor = triton_grpc.InferInput("image_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([file.getvalue()], dtype=np.object_))
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    result = client.infer(BLIP.replace("/", "--"), [tensor], parameters={"max_tokens": 8})
    client.close()
    assert result.as_numpy("completion_tokens").tolist() == [8]
    assert result.as_numpy("text_output")[0].decode()


def status_of_llama(service: Service) -> dict[str, Any]:
    status: dict[str, Any] = httpx.get(f"{service.url}/api/v1/models/{LLAMA}/status").json()
    return status


@contextlib.contextmanager
def streamed(service: Service, tokens: int) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """The server-sent events of a REST answer: their names and data, as they come."""
    body = {
        "input_data": {"prompt": "a river"},
        "parameters": {"max_tokens": tokens},
        "stream": True,
    }
    url = f"{service.url}/api/v1/infer/{LLAMA}"
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line and not line.startswith(":"))
        yield ((name[7:], json.loads(next(lines)[6:])) for name in lines)


async def test_a_rest_stream_whose_process_dies_before_its_first_word_is_run_once_more(
    service: Service, expected: str
) -> None:
    def whole() -> list[tuple[str, dict[str, Any]]]:
        with streamed(service, 24) as events:
            return list(events)

    whole()  # it is loaded now
    process_id = status_of_llama(service)["process_id"]
    os.kill(process_id, signal.SIGSTOP)  # it takes the request and says nothing
    answer = asyncio.ensure_future(asyncio.to_thread(whole))
    await eventually(lambda: status_of_llama(service)["active_requests"])
    os.kill(process_id, signal.SIGKILL)
    events = await answer
    assert "".join(data["text"] for name, data in events if name == "delta") == expected
    assert events[-1][0] == "done"
    assert status_of_llama(service)["process_id"] != process_id


def test_a_rest_stream_whose_process_dies_after_its_first_word_ends_with_an_error(
    service: Service,
) -> None:
    with streamed(service, 4000) as events:
        assert next(events)[0] == "delta"
        os.kill(status_of_llama(service)["process_id"], signal.SIGKILL)
        *pieces, (name, last) = events
    assert {name for name, _ in pieces} <= {"delta"}
    assert name == "error"
    assert last["status"] >= 500
    assert last["error"]["code"]
    with streamed(service, 4) as events:  # who comes next is served
        assert list(events)[-1][0] == "done"


def test_more_memory_was_reserved_than_is_taken(service: Service) -> None:
    found = httpx.get(f"{service.url}/api/v1/models/{LLAMA}").json()
    assert found["resource_requirements"]["memory_mb"] >= found["measured_memory_mb"]
