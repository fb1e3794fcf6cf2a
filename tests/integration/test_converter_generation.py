"""The converters of txt2txt and img2txt: what they write down, and what they refuse."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from converters.__main__ import main
from tests import generation_models as tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("llama") / "source")


def convert(source: Path, output: Path, *options: str, task: str = "txt2txt") -> dict[str, Any]:
    """The last line of a conversion: its result or its error."""
    out = io.StringIO()
    arguments = ["convert", "--task", task, "--source", str(source), "--output", str(output)]
    # Tiny models are slower with several threads, much slower beside other tests.
    main([*arguments, "--model-id", "org/name", "--threads", "1", *options], out)
    last: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return last


def test_in_a_process_of_its_own_it_links_the_files_and_says_how_to_serve_them(
    llama: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "converters", "convert", "--task", "txt2txt"]
    paths = ["--source", str(llama), "--output", str(tmp_path / "artefact")]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "artefact" / "manifest.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1])["manifest"] == manifest
    facts = manifest["text_generation"]
    assert facts["kind"] == "causal"
    assert facts["together"]
    assert facts["chat_template"]
    assert facts["context_length"] == tiny.CONTEXT
    # Two layers, keys and values, two heads of 8 numbers.
    width = {"fp32": 4, "bf16": 2}[manifest["precision"]]
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * width
    assert manifest["engine"] == "transformers"
    assert manifest["max_batch_size"] == 0
    assert manifest["decoupled"] is True
    weights = tmp_path / "artefact" / "model" / "model.safetensors"
    assert weights.samefile(llama / "model.safetensors")


def test_the_precision_that_was_asked_for_is_served(llama: Path, tmp_path: Path) -> None:
    told = convert(llama, tmp_path / "a", "--precision", "bf16")
    assert told["manifest"]["precision"] == "bf16"
    fp32, bf16 = told["manifest"]["candidates"]
    assert (fp32["chosen"], bf16["chosen"]) == (False, True)
    assert 0.999 <= bf16["min_cosine"] < 1  # it was compared, and is not the same
    assert 0 < bf16["divergence"] < 0.01
    assert bf16["same_token"] >= 0.99
    refused = convert(llama, tmp_path / "b", "--precision", "int8")
    assert refused["message"] == "transformers computes in fp32 or bf16, not in int8."
    refused = convert(llama, tmp_path / "c", "--engine", "openvino")
    assert refused["message"] == "A model for txt2txt is served by transformers only."
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its random weights are spread so wide that bf16 loses too many of their digits."""
    return tiny.tiny_bart(tmp_path_factory.mktemp("bart") / "source")


def test_bf16_that_says_something_else_is_refused_with_its_figures(
    bart: Path, tmp_path: Path
) -> None:
    refused = convert(bart, tmp_path / "a", "--precision", "bf16")
    assert refused["code"] == "EXPORT_FAILED"
    assert refused["message"].startswith(
        "transformers bf16: Its scores are too far from fp32's: cosine 0.99"
    )
    assert refused["message"].endswith("For this model there is transformers fp32.")
    assert not (tmp_path / "a").exists()


def test_faster_bf16_that_says_something_else_is_not_chosen(
    bart: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters import precision

    monkeypatch.setattr(precision, "_WORTH", 0.0)  # whatever the times
    manifest = convert(bart, tmp_path / "a")["manifest"]
    assert manifest["precision"] == "fp32"
    fp32, bf16 = manifest["candidates"]
    assert (fp32["chosen"], bf16["chosen"]) == (True, False)
    assert bf16["reason"].startswith("Its scores are too far from fp32's")
    assert bf16["min_cosine"] < 0.999
    assert list(bf16["milliseconds"]) == ["1", "64"]
    assert convert(llama, tmp_path / "b")["manifest"]["precision"] == "bf16"


def test_a_model_that_cannot_compute_in_bf16_is_served_in_fp32(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from converters import precision, text_generation

    scores = text_generation._scores

    def only_fp32(model: Any, ids: list[int]) -> Any:
        if model.dtype is torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return scores(model, ids)

    monkeypatch.setattr(precision, "_WORTH", 0.0)
    monkeypatch.setattr(text_generation, "_scores", only_fp32)
    manifest = convert(llama, tmp_path / "a")["manifest"]
    assert manifest["precision"] == "fp32"
    reason = "It cannot be compared with fp32: not implemented for 'BFloat16'."
    assert manifest["candidates"][1]["reason"] == reason
    refused = convert(llama, tmp_path / "b", "--precision", "bf16")
    assert reason in refused["message"]


def test_bf16_that_is_no_faster_is_not_looked_at(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters import precision

    monkeypatch.setattr(precision, "_WORTH", 1e9)
    manifest = convert(llama, tmp_path / "a")["manifest"]
    assert manifest["precision"] == "fp32"
    assert "min_cosine" not in manifest["candidates"][1]
    assert "times as fast here" in manifest["candidates"][1]["reason"]
    asked = convert(llama, tmp_path / "b", "--precision", "fp32")["manifest"]
    assert "candidates" not in asked


@pytest.mark.parametrize(("stored", "served"), [("float32", None), ("bfloat16", "bf16")])
def test_where_fp32_has_no_room_only_bf16_weights_are_served_in_bf16_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, served: str | None
) -> None:
    import psutil

    source = tiny.tiny_llama(tmp_path / "source", stored=stored)
    full = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    told = convert(source, tmp_path / "artefact", "--precision", "bf16")
    if served is None:
        assert "It was not compared with fp32, whose weights take" in told["message"]
        return
    assert told["manifest"]["precision"] == served
    assert "It was not compared with fp32" in told["manifest"]["candidates"][1]["reason"]


def test_pictures_are_described_in_bf16_only_when_it_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters import agreement

    source = tiny.tiny_blip(tmp_path / "blip")
    told = convert(source, tmp_path / "a", "--precision", "bf16", task="img2txt")
    assert told["manifest"]["candidates"][1]["min_cosine"] >= 0.999
    monkeypatch.setattr(agreement, "MOST_DIVERGENCE", 0.0)
    refused = convert(source, tmp_path / "b", "--precision", "bf16", task="img2txt")
    assert "Its scores are too far from fp32's" in refused["message"]


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_a_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    core = json.loads(path.read_text())
    core["model"]["vocab"] |= {f"word{i}": len(core["model"]["vocab"]) + i for i in range(500)}
    path.write_text(json.dumps(core))


@pytest.mark.parametrize(
    ("harm", "code", "message"),
    [
        (as_pickle, "UNSAFE_WEIGHTS", "is a pickle, which can run code"),
        (without_a_layer, "ARTIFACT_NOT_ACCESSIBLE", "do not fit config.json: model.layers.1.mlp"),
        (another_tokenizer, "EXPORT_FAILED", "they do not belong together"),
        (
            lambda f: (f / "tokenizer.json").unlink(),
            "ARTIFACT_NOT_ACCESSIBLE",
            "The tokenizer cannot be read",
        ),
        (
            lambda f: change(f, "config.json", hidden_size=48),
            "ARTIFACT_NOT_ACCESSIBLE",
            "do not fit config.json: lm_head.weight and 20 more are missing or of another size",
        ),
        (
            lambda f: change(f, "config.json", architectures=["LlamaForSequenceClassification"]),
            "EXPORT_FAILED",
            "LlamaForSequenceClassification of config.json is no model for txt2txt.",
        ),
        (
            lambda f: change(f, "config.json", model_type="own", auto_map={"AutoModel": "own.M"}),
            "EXPORT_FAILED",
            "'own' of config.json brings its own code, which this task does not run.",
        ),
        (
            lambda f: change(f, "config.json", quantization_config={"quant_method": "awq"}),
            "EXPORT_FAILED",
            "The model's weights are quantized",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text("{}"),
            "EXPORT_FAILED",
            "The model is a PEFT adapter",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_published(
    llama: Path, tmp_path: Path, harm: Callable[[Path], object], code: str, message: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    harm(source)
    refused = convert(source, tmp_path / "artefact")
    assert (refused["event"], refused["code"]) == ("error", code)
    assert message in refused["message"]
    assert not (tmp_path / "artefact").exists()


def test_a_text_model_describes_no_images(llama: Path, tmp_path: Path) -> None:
    refused = convert(llama, tmp_path / "artefact", task="img2txt")
    assert refused["message"] == "LlamaForCausalLM of config.json is no model for img2txt."
