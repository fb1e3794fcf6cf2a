"""Image models: converted by the real converter, served by Triton, compared with transformers."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from backends.errors import BackendError, InputError, RequestAbandoned
from backends.image_embedding.embedder import Embedder
from backends.image_embedding.requests import EmbeddingRequest
from controlplane.triton.failures import ModelFailed, RequestRejected
from tests import image_models, models
from tests.awkward_images import awkward_images, encoded, picture, png_header
from tests.served import Served, convert, refusal, served

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.triton, pytest.mark.torch]

# Engines in bf16 are a matter of their own (tests of the engines); here vectors are compared.
EXACT = ("--threads", "1", "--engine", "onnxruntime")
# Which vector each family's is, and whether it takes texts.
FAMILIES: dict[str, tuple[Callable[[Path], Path], str, bool]] = {
    "clip": (image_models.tiny_clip, "image_features", True),
    "siglip": (image_models.tiny_siglip, "image_features", True),
    "siglip2": (
        lambda folder: image_models.tiny_siglip(folder, second=True),
        "image_features",
        True,
    ),
    "vit": (image_models.tiny_vit, "pooler_output", False),
    "dinov2": (image_models.tiny_dinov2, "pooler_output", False),
}
# In place of the version folder's own model.py: tells which modules the stub has imported.
TELLING_MODEL_PY = """
import sys
from backends.image_embedding.model import TritonPythonModel as Model

class TritonPythonModel(Model):
    def execute(self, requests):
        responses = super().execute(requests)
        raise RuntimeError("imported: " + " ".join(sorted(sys.modules)))
"""


def files() -> list[bytes]:
    """Pictures that a model can tell apart, and all the awkward ones."""
    return list(awkward_images().values())


def texts() -> list[str]:
    """Without blanks and special tokens, of which every tokenizer makes something else."""
    return [text for text in models.TEXTS[1:] if text.strip() and "</s>" not in text]


def assert_close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=5e-6 * max(1, np.abs(expected).max()))
    cosines = (found * expected).sum(1) / (
        np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    )
    assert cosines.min() > 0.99999
    # The comparison means something: what goes in differs, and so does what comes out.
    assert np.linalg.norm(expected[0] - expected[1]) > 0.01 * np.linalg.norm(expected[0])


@pytest.mark.parametrize("family", FAMILIES)
async def test_vectors_are_transformers_own(
    family: str, tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    build, vector, takes_texts = FAMILIES[family]
    source = build(tmp_path / "source")
    manifest = convert("img2embed", source, tmp_path / "artefact", *EXACT)
    assert manifest["image_embedding"]["image"]["vector"] == vector
    assert manifest["parity"]["min_cosine"] >= 0.9999
    assert manifest["parity"]["pixels"] == 0.0
    names = ["image_input", "text_input"] if takes_texts else ["image_input"]
    assert [tensor["name"] for tensor in manifest["inputs"]] == names
    async with served(family, tmp_path / "artefact", triton, triton_client) as model:
        expected = image_models.picture_vectors(source, files())
        parts = [files()[i : i + 11] for i in range(0, len(files()), 11)]
        found = await asyncio.gather(*(model.infer({"image_input": list(p)}) for p in parts))
        assert_close(np.concatenate([part["embedding"] for part in found]), expected)
        if takes_texts:
            answer = await model.infer({"text_input": list(texts())})
            assert_close(answer["embedding"], image_models.text_vectors(source, texts()))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of a CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    convert("img2embed", image_models.tiny_clip(folder / "source"), folder / "artefact", *EXACT)
    return folder / "artefact"


async def test_clip_in_the_server(
    clip: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    """One model for many questions: pictures and texts together, hostile ones among them."""
    async with served("clip-asked", clip, triton, triton_client) as model:
        await _pictures_and_texts_of_one_execution(model)
        await _normalize(model)
        await _hostile_requests_fail_alone(model)
        await _the_stub_has_no_framework(model)


async def _pictures_and_texts_of_one_execution(model: Served) -> None:
    some = files()[:6]
    pictures = (await model.infer({"image_input": list(some)}))["embedding"]
    words = (await model.infer({"text_input": ["the cat", "a dog"]}))["embedding"]
    asked: list[dict[str, list[str | bytes]]] = [
        {"image_input": [some[0]]},
        {"text_input": ["the cat"]},
        {"image_input": list(some[1:4])},
        {"text_input": ["a dog"]},
        {"image_input": list(some[4:])},
    ]
    found = [answer["embedding"] for answer in await asyncio.gather(*map(model.infer, asked))]
    np.testing.assert_allclose(np.concatenate([found[0], found[2], found[4]]), pictures, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([found[1], found[3]]), words, atol=1e-5)


async def _normalize(model: Served) -> None:
    picture_file = files()[0]
    plain = (await model.infer({"image_input": [picture_file]}))["embedding"]
    off = (await model.infer({"image_input": [picture_file]}, normalize=False))["embedding"]
    unit = (await model.infer({"image_input": [picture_file]}, normalize=True))["embedding"]
    text = (await model.infer({"text_input": ["a dog"]}, normalize=True))["embedding"]
    np.testing.assert_array_equal(plain, off)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain), atol=1e-6)
    assert abs(np.linalg.norm(text) - 1) < 1e-6


async def _hostile_requests_fail_alone(model: Served) -> None:
    good = files()[0]
    hostile: list[tuple[dict[str, list[str | bytes]], dict[str, Any], str]] = [
        ({"image_input": [good, good[:300]]}, {}, "Image 1 is damaged or cut off: "),
        ({"image_input": [png_header(50_000, 50_000)]}, {}, "Image 0 has more pixels than the 64"),
        ({"image_input": [b"%PDF-1.7"]}, {}, "Image 0 is not an image that can be read"),
        ({"image_input": [b""]}, {}, "Image 0 is empty"),
        ({"image_input": [encoded(picture(90_000, 1))]}, {}, "Image 0 has 90,000 x 1 pixels"),
        ({"image_input": [good], "text_input": ["a"]}, {}, "A request needs exactly one of"),
        ({"text_input": ["x" * 100_001]}, {}, "text_input[0] has 100,001 characters"),
        ({"text_input": [b"\xff"]}, {}, "text_input[0] is not valid UTF-8"),
        ({"image_input": [good]}, {"normalize": "yes"}, "Parameter normalize must be true or"),
    ]
    expected = (await model.infer({"image_input": [good]}))["embedding"]
    results = await asyncio.gather(
        *(model.infer(inputs, **parameters) for inputs, parameters, _ in hostile),
        model.infer({"image_input": [good]}),
        return_exceptions=True,
    )
    for result, (_, _, words) in zip(results, hostile, strict=False):
        assert isinstance(result, RequestRejected), words
        assert str(result).startswith(words)
    last = results[-1]
    assert isinstance(last, dict)
    np.testing.assert_allclose(last["embedding"], expected, atol=1e-5)
    with pytest.raises(RequestRejected, match="request has 0 inputs"):  # Triton's own words
        await model.infer({})


async def _the_stub_has_no_framework(model: Served) -> None:
    mapped = " ".join(region.path for region in psutil.Process(model.pid()).memory_maps())
    assert "onnxruntime" in mapped or "openvino" in mapped
    assert "torch" not in mapped


async def test_the_stub_imports_no_framework(
    clip: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    model = Served("clip-telling", clip, triton, triton_client)
    try:
        folder = triton.repository / model.name / "1"
        (folder / "model.py").write_text(TELLING_MODEL_PY)
        for compiled in (folder / "__pycache__").glob("*"):
            compiled.unlink()
        await model.load()
        with pytest.raises(ModelFailed, match="imported: ") as told:
            await model.infer({"image_input": [files()[0]]})
    finally:
        await triton_client.unload(model.name, timeout=30)
        model.repository.remove(model.id)
    imported = set(re.split(r"\s+", str(told.value)))
    assert {"PIL", "tokenizers", "numpy"} <= imported
    assert not imported & {"torch", "transformers", "onnx", "tritonclient", "controlplane", "grpc"}


# -- without a server ----------------------------------------------------------------------------


def requests(*sizes: int) -> list[EmbeddingRequest]:
    some = files()[:5]
    return [
        EmbeddingRequest(tuple(some[i % 5] for i in range(n)), (), normalize=False) for n in sizes
    ]


def test_an_abandoned_request_leaves_the_others_whole(clip: Path) -> None:
    embedder = Embedder.open(clip)
    whole = embedder.embed(requests(3, 2, 4))
    parts = embedder.embed(requests(3, 2, 4), abandoned=lambda index: index == 1)
    assert isinstance(parts[1], RequestAbandoned)
    for index in (0, 2):
        a, b = whole[index], parts[index]
        assert not isinstance(a, BackendError)
        assert not isinstance(b, BackendError)
        np.testing.assert_allclose(a["embedding"], b["embedding"], atol=1e-5)


def test_a_request_given_up_half_way_is_not_worked_on(clip: Path) -> None:
    """Eighty pictures are several sub-batches; after the first nobody waits any more."""
    asked: list[int] = []

    def abandoned(index: int) -> bool:
        asked.append(index)
        return len(asked) > 1

    (result,) = Embedder.open(clip).embed(requests(80), abandoned)
    assert isinstance(result, RequestAbandoned)
    assert len(asked) >= 2


def test_a_picture_that_fails_fails_its_request_alone(clip: Path) -> None:
    bad = EmbeddingRequest((files()[0], b"junk"), (), normalize=False)
    results = Embedder.open(clip).embed([*requests(2), bad, *requests(1)])
    assert isinstance(results[1], InputError)
    assert str(results[1]).startswith("Image 1 is not an image")
    assert [isinstance(result, dict) for result in results] == [True, False, True]


def test_requests_without_items_get_no_vectors(clip: Path) -> None:
    embedder = Embedder.open(clip)
    assert embedder.embed([]) == []
    (empty,) = embedder.embed([EmbeddingRequest((), (), normalize=True)])
    assert isinstance(empty, dict)
    assert empty["embedding"].shape == (0, image_models.SHARED)


# -- the converter -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "vector", "dimension"),
    [
        (lambda f: image_models.tiny_vit(f, pooler=False), "cls", models.HIDDEN),
        (lambda f: image_models.tiny_clip(f, alone=True), "pooler_output", image_models.SHARED),
        (image_models.tiny_convnext, "pooler_output", 16),
    ],
    ids=["vit-cls", "clip-vision", "convnext"],
)
def test_other_vectors(
    build: Callable[[Path], Path], vector: str, dimension: int, tmp_path: Path
) -> None:
    source = build(tmp_path / "source")
    manifest = convert("img2embed", source, tmp_path / "out", *EXACT)
    assert manifest["image_embedding"]["image"]["vector"] == vector
    assert manifest["outputs"][0]["shape"] == [dimension]
    found = _served_vectors(tmp_path / "out")
    if vector == "cls":
        assert found.shape == (len(files()), dimension)
        return
    assert_close(found, image_models.picture_vectors(source, files()))


def test_clip_of_sentence_transformers(tmp_path: Path) -> None:
    """In a module of modules.json, with Normalize behind it."""
    source = image_models.tiny_clip(tmp_path / "source", normalize=True)
    manifest = convert("img2embed", source, tmp_path / "out", *EXACT)
    assert manifest["image_embedding"]["normalized"] is True
    plain = image_models.picture_vectors(source / "0_CLIPModel", files())
    assert_close(
        _served_vectors(tmp_path / "out"), plain / np.linalg.norm(plain, axis=1, keepdims=True)
    )


@pytest.mark.parametrize("build", [image_models.tiny_clip, image_models.tiny_siglip])
def test_the_text_tower_alone_as_txt2embed(build: Callable[[Path], Path], tmp_path: Path) -> None:
    from backends.text_embedding.embedder import Embedder as TextEmbedder
    from backends.text_embedding.requests import EmbeddingRequest as TextRequest

    source = build(tmp_path / "source")
    manifest = convert("txt2embed", source, tmp_path / "out", *EXACT)
    assert manifest["task_type"] == "txt2embed"
    embedder = TextEmbedder.open(tmp_path / "out")
    (found,) = embedder.embed([TextRequest(tuple(texts()), normalize=False)])
    assert not isinstance(found, BackendError)
    assert_close(found, image_models.text_vectors(source, texts()))


def test_the_fastest_engine_is_chosen_one_for_both_towers(tmp_path: Path) -> None:
    source = image_models.tiny_clip(tmp_path / "source")
    manifest = convert("img2embed", source, tmp_path / "out", "--engine", "openvino")
    section = manifest["image_embedding"]
    assert manifest["engine"] == section["text"]["engine"] == "openvino"
    assert {entry["precision"] for entry in manifest["candidates"]} >= {"fp32"}
    found = _served_vectors(tmp_path / "out")
    expected = image_models.picture_vectors(source, files())
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / lengths).min() > 0.999


def _served_vectors(artefact: Path) -> np.ndarray[Any, Any]:
    request = EmbeddingRequest(tuple(files()), (), normalize=False)
    (result,) = Embedder.open(artefact).embed([request])
    assert not isinstance(result, BackendError)
    return result["embedding"]


def test_refusals_say_what_is_missing(tmp_path: Path) -> None:
    source = image_models.tiny_vit(tmp_path / "vit")
    config = source / "preprocessor_config.json"
    settings = config.read_text()
    config.write_text(settings.replace('"size": {', '"do_pad": true, "size": {'))
    line = refusal("img2embed", source, tmp_path / "a")
    assert "do_pad without pad_size is not supported" in line["message"]
    config.write_text(settings.replace(f'"height": {image_models.EDGE}', '"height": 40'))
    line = refusal("img2embed", source, tmp_path / "b")
    assert "does not take what its image processor gives ([3, 40, 32])" in line["message"]
    config.unlink()
    line = refusal("img2embed", source, tmp_path / "c")
    assert line["code"] == "ARTIFACT_NOT_ACCESSIBLE"
    assert "no preprocessor_config.json" in line["message"]
    text = models.tiny_bert(tmp_path / "bert")
    (text / "modules.json").unlink()
    line = refusal("img2embed", text, tmp_path / "d")
    assert "takes no pictures" in line["message"]
    (text / "config.json").write_text(
        '{"model_type": "siglip2", "architectures": ["Siglip2Model"]}'
    )
    line = refusal("img2embed", text, tmp_path / "e")
    assert line["message"].startswith("SigLIP 2 NaFlex takes pictures in their own shapes")
    assert not list(tmp_path.glob("?"))
