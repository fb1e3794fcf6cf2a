"""Requests of the image_embedding backend, checked without a model; damaged manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.errors import ArtefactError, InputError
from backends.image_embedding.artefact import ImageEmbeddingArtefact, ImageGraph, read_artefact
from backends.image_embedding.requests import read_request
from backends.preprocessing import Preprocessing
from backends.text_graph import TextGraphArtefact

_PLAIN = Preprocessing((8, 8), None, None, None, None, None)
_IMAGE = ImageGraph("onnxruntime", "fp32", Path("m"), "pixel_values", "features", 17, _PLAIN)
_TEXT = TextGraphArtefact(
    model_id="org/clip",
    engine="onnxruntime",
    precision="fp32",
    model_file=Path("t"),
    tokenizer_file=Path("k"),
    input_names=("input_ids",),
    output_names=("features",),
    max_seq_length=77,
    do_lower_case=False,
    pad_token_id=0,
    pad_token_type_id=0,
    padding_side="right",
    truncation_side="right",
)
CLIP = ImageEmbeddingArtefact("org/clip", 4, False, _IMAGE, _TEXT)
VIT = replace(CLIP, model_id="org/vit", text=None)


def rows(*items: Any) -> np.ndarray[Any, Any]:
    array = np.empty((len(items), 1), dtype=np.object_)
    array[:, 0] = items
    return array


def test_pictures_or_texts() -> None:
    pictures = read_request(rows(b"a", b"b"), None, {}, CLIP)
    assert (pictures.pictures, pictures.texts, pictures.normalize) == ((b"a", b"b"), (), False)
    texts = read_request(None, rows("ä".encode()), {"normalize": True, "priority": 3}, CLIP)
    assert (texts.pictures, texts.texts, texts.normalize) == ((), ("ä",), True)
    assert read_request(rows(), None, {}, VIT).pictures == ()


def test_a_model_that_normalises_is_not_asked_to_do_it_again() -> None:
    model = replace(CLIP, normalized=True)
    assert not read_request(rows(b"a"), None, {"normalize": True}, model).normalize
    with pytest.raises(InputError, match=r"org/clip always normalises .* normalize=false is not"):
        read_request(rows(b"a"), None, {"normalize": False}, model)


@pytest.mark.parametrize(
    ("model", "image", "text", "parameters", "words"),
    [
        (
            CLIP,
            None,
            None,
            {},
            "needs exactly one of image_input, text_input; this one has neither",
        ),
        (CLIP, rows(b"a"), rows(b"b"), {}, "needs exactly one of .*; this one has both"),
        (VIT, None, None, {}, "needs image_input; this one has neither"),
        (VIT, None, rows(b"b"), {}, "Model org/vit takes pictures only: send image_input"),
        (CLIP, rows("text"), None, {}, r"image_input\[0\] must be BYTES, got str"),
        (CLIP, np.array([[b"a", b"b"]], np.object_), None, {}, r"image_input must have the shape"),
        (CLIP, None, rows(b"\xff"), {}, r"text_input\[0\] is not valid UTF-8"),
        (CLIP, None, rows(b"x" * 100_001), {}, "has 100,001 characters; at most 100,000"),
        (CLIP, rows(b"a"), None, {"normalize": float("nan")}, "normalize must be true or false"),
        (CLIP, rows(b"a"), None, {"normalize": 1}, "normalize must be true or false, got 1"),
    ],
)
def test_refusals(
    model: ImageEmbeddingArtefact, image: Any, text: Any, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read_request(image, text, parameters, model)


_MANIFEST: dict[str, Any] = {
    "format": 1,
    "model_id": "org/vit",
    "engine": "onnxruntime",
    "precision": "fp32",
    "files": [],
    "image_embedding": {
        "dimension": 4,
        "normalized": False,
        "text": None,
        "image": {
            "model_file": "image/model.onnx",
            "input_name": "pixel_values",
            "output_name": "features",
            "tokens": 17,
            "preprocessing": {"size": [8, 8], "resize": None, "crop": None},
        },
    },
}


@pytest.mark.parametrize(
    ("section", "image", "words"),
    [
        ({}, {}, ""),
        ({"dimension": 0}, {}, "dimension and tokens must be above 0"),
        ({}, {"tokens": 0}, "dimension and tokens must be above 0"),
        ({}, {"preprocessing": {"size": [0, 8]}}, r"incomplete: \[0, 8\] is not a height and a"),
        ({}, {"preprocessing": {}}, "incomplete: no 'size'"),
        ({"text": {}}, {}, "is incomplete: no "),
    ],
)
def test_manifests(
    section: dict[str, Any], image: dict[str, Any], words: str, tmp_path: Path
) -> None:
    whole = _MANIFEST["image_embedding"] | section
    changed = _MANIFEST | {"image_embedding": whole | {"image": whole["image"] | image}}
    (tmp_path / "manifest.json").write_text(json.dumps(changed))
    if not words:
        assert read_artefact(tmp_path).image.model_file == tmp_path / "image/model.onnx"
        return
    with pytest.raises(ArtefactError, match=words):
        read_artefact(tmp_path)
