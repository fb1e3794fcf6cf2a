"""Searching images by text: a CLIP from the hub is an endpoint for plain clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from tests import image_models
from tests.awkward_images import awkward_images
from tests.hub import LocalHub
from tests.service import Service

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.torch]

CLIP, TEXT_ONLY = "tests/clip", "tests/clip-text"
NAMES = ("plain", "EXIF 6", "CMYK", "animated GIF")
TEXTS = ["the cat plays in the house", "a small dog"]


def test_a_clip_from_the_hub_gives_vectors_of_pictures_and_texts(tmp_path: Path) -> None:
    source = image_models.tiny_clip(tmp_path / "clip")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with LocalHub() as hub:
        hub.add(CLIP, files)
        service = Service(tmp_path / "service", forking=True)
        # Whatever the hub's library reads, it reads when it is imported.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", hub.url)
            service.start()
        try:
            with service.client() as client:
                client.install(CLIP, timeout=120)  # the task is read from its files
                client.install(TEXT_ONLY, source_url=source.as_uri(), task_type="txt2embed")
            _search(service, source)
        finally:
            service.end()


def _search(service: Service, source: Path) -> None:
    pictures = [awkward_images()[name] for name in NAMES]
    found = _embed(service, CLIP, "image_input", pictures)
    assert_close(found, image_models.picture_vectors(source, pictures))
    expected = image_models.text_vectors(source, TEXTS)
    assert_close(_embed(service, CLIP, "text_input", [text.encode() for text in TEXTS]), expected)
    # The same repository, registered for texts alone: the same vectors.
    assert_close(
        _embed(service, TEXT_ONLY, "text_input", [text.encode() for text in TEXTS]), expected
    )
    answer = httpx.post(
        f"{service.url}/v2/models/{CLIP.replace('/', '--')}/infer",
        json={
            "inputs": [
                {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": [TEXTS[0]]}
            ]
        },
    ).json()
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected[0], rtol=1e-4, atol=1e-4)


def _embed(service: Service, model: str, name: str, items: list[bytes]) -> np.ndarray[Any, Any]:
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    tensor = triton_grpc.InferInput(name, [len(items), 1], "BYTES")
    rows = np.empty((len(items), 1), dtype=np.object_)
    rows[:, 0] = items
    tensor.set_data_from_numpy(rows)
    vectors: np.ndarray[Any, Any] = client.infer(model, [tensor]).as_numpy("embedding")
    client.close()
    return vectors


def assert_close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / lengths).min() > 0.9999
