"""What the usual engines cannot take: graphs that no ONNX exporter has words for, and weights that
int8 cannot hold."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import models
from tests.served import convert, refusal, served

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.torch

# ONNX has no matrix exponential, so neither of torch's exporters can write one.
_CODE = """
import torch
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        output = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        states = output.last_hidden_state
        turn = torch.matrix_exp(self.encoder.layer[0].output.dense.weight[:, :states.shape[-1]])
        output["last_hidden_state"] = states @ turn
        return output
"""


def beyond_onnx(folder: Path) -> Path:
    """A BERT whose own code turns its vectors by a matrix exponential."""
    models.tiny_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(_CODE)
    return folder


def with_outliers(folder: Path) -> Path:
    """A BERT with two channels that are large, equal and taken from each other by every product:
    they change nothing, but leave int8 no steps for the others."""
    import torch
    from safetensors.torch import load_file, save_file

    models.tiny_bert(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "LayerNorm" in name:
            last = "layer.1.output" in name  # that of the vectors, where they would be all there is
            tensor[:2] = 30.0 if name.endswith("bias") and not last else 0.0
        elif name.endswith(
            ("query.weight", "key.weight", "value.weight", "intermediate.dense.weight")
        ):
            tensor[:, 0], tensor[:, 1] = 20.0, -20.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    return folder


@pytest.mark.triton
async def test_what_no_onnx_exporter_takes_is_traced_and_served(
    tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    from sentence_transformers import SentenceTransformer

    source = beyond_onnx(tmp_path / "model")
    manifest = convert("txt2embed", source, tmp_path / "artefact", "--trust-remote-code")
    assert (manifest["engine"], manifest["converter"]["exporter"]) == ("torchscript", "trace")
    assert {file["path"] for file in manifest["files"]} == {
        "model.torchscript.pt",
        "tokenizer.json",
    }
    model = SentenceTransformer(
        str(source), device="cpu", local_files_only=True, trust_remote_code=True
    )
    expected = model.encode(list(models.TEXTS))
    async with served("beyond-onnx", tmp_path / "artefact", triton, triton_client) as own:
        found = (await own.infer({"text_input": list(models.TEXTS)}))["embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_int8_that_misses_its_gate_is_refused_with_its_figures(tmp_path: Path) -> None:
    """With the cosine that it reached, and what there is instead."""
    source = with_outliers(tmp_path / "model")
    assert convert("txt2embed", source, tmp_path / "fp32")["precision"] == "fp32"
    wanted = ("--engine", "onnxruntime", "--precision", "int8")
    line = refusal("txt2embed", source, tmp_path / "int8", *wanted)
    assert line["code"] == "EXPORT_FAILED"
    far = r"onnxruntime int8: .* too far from PyTorch's: cosine \S+, int8 needs 0\.99"
    assert re.search(far, line["message"]), line["message"]
    assert "there are onnxruntime fp32" in line["message"]
    assert not (tmp_path / "int8").exists()
    # OpenVINO's int8 is int8 weights, which outliers of activations do not harm.
    manifest = convert("txt2embed", source, tmp_path / "openvino", "--precision", "int8")
    assert (manifest["engine"], manifest["precision"]) == ("openvino", "int8")
