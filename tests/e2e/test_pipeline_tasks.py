"""Classifiers, diffusion and transformers pipelines through the product, for plain clients."""

from __future__ import annotations

import io
import queue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from PIL import Image

from backends.audio import encode_wav
from tests import diffusion_models, pipeline_models
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.triton,
    pytest.mark.torch,
    # what importing all of diffusers brings up
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
]

# One for each of the backends, and what its own files must tell: nobody names a task.
TASKS = {
    "tiny/classifier": "classification",
    "tiny/diffusion": "txt2img",
    "tiny/listener": "audio2txt",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with one model of each backend, installed from folders without a task."""
    home = tmp_path_factory.mktemp("pipelines")
    sources: dict[str, Path] = {
        "tiny/classifier": pipeline_models.text_classifier(home / "classifier"),
        "tiny/diffusion": diffusion_models.stable_diffusion(home / "diffusion"),
        "tiny/listener": pipeline_models.ctc_listener(home / "listener"),
    }
    running = Service(home / "service", forking=True, MAX_MODELS="2").start()
    try:
        with running.client() as client:
            for name, source in sources.items():
                client.install(name, source_url=source.as_uri(), timeout=180)
        yield running
    finally:
        running.end()


def tensors(**inputs: str | bytes) -> list[triton_grpc.InferInput]:
    """BYTES inputs of one item."""
    made = []
    for name, value in inputs.items():
        tensor = triton_grpc.InferInput(name, [1], "BYTES")
        raw = value.encode() if isinstance(value, str) else value
        tensor.set_data_from_numpy(np.array([raw], dtype=np.object_))
        made.append(tensor)
    return made


def rows(**inputs: str) -> list[triton_grpc.InferInput]:
    """BYTES inputs of a batch of one."""
    made = []
    for name, value in inputs.items():
        tensor = triton_grpc.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value.encode()]], dtype=np.object_))
        made.append(tensor)
    return made


def streamed(
    client: triton_grpc.InferenceServerClient, name: str, inputs: Any, **parameters: Any
) -> list[Any]:
    """All responses of a decoupled model."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(name, inputs, parameters=parameters, enable_empty_final_response=True)
    found = []
    while True:
        result, error = answers.get(timeout=60)
        assert error is None, error
        found.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    return found


def test_every_task_is_recognised_and_served(installed: Service) -> None:
    with installed.client() as client:
        for name, task in TASKS.items():
            assert client.get(name).task_type == task
    client = triton_grpc.InferenceServerClient(installed.grpc_url)
    text = "the cat plays in the house"
    found = client.infer("tiny--classifier", rows(text_input=text), parameters={"top_k": 2})
    assert found.as_numpy("label").shape == (1, 2)
    wav = encode_wav(np.random.default_rng(1).normal(0, 0.2, 16_000), 16_000)
    heard = client.infer(
        "tiny--listener", tensors(audio_input=wav), parameters={"timestamps": True}
    )
    words = heard.as_numpy("segment_text")
    assert heard.as_numpy("segment_start").shape == words.shape
    options = {"steps": 2, "seed": 1, "width": 64, "height": 64}
    found = streamed(client, "tiny--diffusion", tensors(text_input="a cat"), **options)
    steps = [answer.as_numpy("step") for answer in found]
    assert [int(step[0]) for step in steps if step is not None] == [1, 2, 2]
    pictures = [answer.as_numpy("image_output") for answer in found]
    (picture,) = [p[0] for p in pictures if p is not None and len(p)]
    assert Image.open(io.BytesIO(picture)).size == (64, 64)
    client.close()
