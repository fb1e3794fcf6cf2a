"""A text-embedding artefact made by hand, and a stand-in for Triton's ONNX Runtime backend.

Triton takes `model.py` in a backend's folder for a backend of that name. So the stand-in is found,
configured and asked as the real one is; only the library that runs the graph is Python's.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("[PAD]", "[UNK]", "a", "b", "c", "d")
DIMENSION = 4
BACKEND = """
import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        assert args["model_instance_kind"] == "CPU", args
        folder = Path(args["model_repository"]) / args["model_version"]
        file = folder / config["default_model_filename"]
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if (given["input_ids"] == 5).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no d here"))
        names = request.requested_output_names()
        found = self.session.run(names, given)
        tensors = [pb_utils.Tensor(name, array) for name, array in zip(names, found)]
        return pb_utils.InferenceResponse(tensors)
"""


def add_backend(state_dir: Path, name: str) -> None:
    """Put the stand-in where an `EmbeddedTriton` with that folder has its backends."""
    folder = state_dir / "triton_backends" / name
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(BACKEND)


def copied(source: Path, target: Path) -> None:
    """Instead of links: of a backend in Python, Triton wants the library inside its folder."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def artefact(folder: Path) -> Path:
    """An artefact of the text_embedding backend: one vector a word, their mean a text."""
    folder.mkdir(parents=True)
    _write_graph(folder / "model.onnx")
    _write_tokenizer(folder / "tokenizer.json")
    names = ("model.onnx", "tokenizer.json")
    manifest = {
        "format": 1,
        "model_id": "org/name",
        "version": "main",
        "task_type": "txt2embed",
        "backend": "text_embedding",
        "engine": "onnxruntime",
        "precision": "fp32",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [DIMENSION]}],
        "max_batch_size": 32,
        "text_embedding": {
            "model_file": "model.onnx",
            "tokenizer_file": "tokenizer.json",
            "input_names": ["input_ids", "attention_mask"],
            "output_name": "sentence_embedding",
            "dimension": DIMENSION,
            "max_seq_length": 16,
            "do_lower_case": False,
            "pad_token_id": 0,
            "pad_token_type_id": 0,
            "padding_side": "right",
            "normalized": False,
            "prompts": {},
            "default_prompt_name": None,
        },
        "files": [
            {"path": name, "size": (folder / name).stat().st_size, "sha256": "0" * 64}
            for name in names
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def _write_graph(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(7).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["n", DIMENSION])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["flat"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flat", "last"], ["mask"]),
        helper.make_node("Mul", ["words", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=0),
        helper.make_node("Max", ["count", "least"], ["divisor"]),  # of a text without words
        helper.make_node("Div", ["sum", "divisor"], ["sentence_embedding"]),
    ]
    constants = {"table": table, "last": np.array([-1]), "one": np.array([1])}
    constants["least"] = np.array([1], np.float32)
    graph = helper.make_graph(
        nodes,
        "mean",
        ids,
        [out],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
