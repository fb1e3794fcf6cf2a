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
    main([*arguments, "--model-id", "org/name", *options], out)
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
    refused = convert(llama, tmp_path / "b", "--precision", "int8")
    assert refused["message"] == "transformers computes in fp32 or bf16, not in int8."
    refused = convert(llama, tmp_path / "c", "--engine", "openvino")
    assert refused["message"] == "A model for txt2txt is served by transformers only."
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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
