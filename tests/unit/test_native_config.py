"""Graphs as models of Triton's own backends: which fit, and their configurations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from backends.engines import native
from controlplane.errors import SettingsError
from controlplane.registry.model import ModelId
from controlplane.settings import load_settings
from controlplane.triton import native_config, ready_config
from controlplane.triton.model_config import ModelConfig, read_pbtxt, to_pbtxt
from controlplane.triton.native_config import choose, graph_of, member, member_name

SECTION = {
    "model_file": "model.onnx",
    "input_names": ["input_ids", "attention_mask", "token_type_ids"],
    "output_name": "sentence_embedding",
    "dimension": 384,
}
MANIFEST: dict[str, Any] = {
    "backend": "text_embedding",
    "engine": "onnxruntime",
    "precision": "fp32",
    "text_embedding": SECTION,
    "files": [
        {"path": "model.onnx", "size": 1000},
        {"path": "model.onnx.data", "size": 5000},
        {"path": "tokenizer.json", "size": 2**40},
    ],
}


def with_(**changes: Any) -> dict[str, Any]:
    return MANIFEST | changes


@pytest.mark.parametrize(
    ("manifest", "available", "chosen"),
    [
        (MANIFEST, (), None),
        (MANIFEST, ("onnxruntime",), "onnxruntime"),
        (MANIFEST, ("openvino",), "openvino"),
        (MANIFEST, ("openvino", "onnxruntime"), "onnxruntime"),  # what the artefact was made for
        (MANIFEST, ("pytorch", "python"), None),
        (with_(engine="openvino"), ("onnxruntime", "openvino"), "openvino"),
        (with_(engine="openvino"), ("onnxruntime",), "onnxruntime"),
        (with_(engine="torchscript"), ("onnxruntime", "pytorch"), None),
        (with_(engine="echo_engine"), ("onnxruntime",), None),
        (with_(precision="bf16", engine="openvino"), ("openvino",), None),
        (with_(precision="int8"), ("onnxruntime",), None),
        (with_(backend="text_generation"), ("onnxruntime",), None),
        (with_(backend="somebodys", somebodys={}), ("onnxruntime",), None),
        (with_(files=[{"path": "model.onnx", "size": 2**30 + 1}]), ("onnxruntime",), None),
    ],
)
def test_which_backend_runs_a_graph(
    manifest: dict[str, Any], available: tuple[str, ...], chosen: str | None
) -> None:
    assert choose(manifest, available) == chosen


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_configuration_is_tritons(backend: str) -> None:
    found = member("org--name", 3, MANIFEST, backend)
    config = json_format.Parse(found.config, ModelConfig())  # refuses fields that Triton has not
    assert read_pbtxt(to_pbtxt(config)) == config
    assert ready_config.faults(config) == {}
    read = ready_config.read(config)
    assert (found.name, config.name, read.backend) == ("org--name--3", "org--name--3", backend)
    assert (read.max_batch_size, read.model_file, read.versions) == (0, "model.onnx", [1])
    assert [(t.name, t.datatype, t.shape) for t in read.inputs] == [
        (name, "INT64", [-1, -1]) for name in SECTION["input_names"]
    ]
    assert [(t.name, t.datatype, t.shape) for t in read.outputs] == [
        ("sentence_embedding", "FP32", [-1, 384])
    ]
    assert (read.gpu_field, read.decoupled, read.paths["default_model_filename"]) == (
        None,
        False,
        "model.onnx",
    )
    assert found.files == {"1/model.onnx": "model.onnx", "1/model.onnx.data": "model.onnx.data"}


def test_a_graph_of_another_name_gets_the_one_that_is_looked_for() -> None:
    files = [{"path": "g/best.onnx", "size": 1}, {"path": "g/best.onnx.data", "size": 1}]
    section = SECTION | {"model_file": "g/best.onnx"}
    found = member("a--b", 1, with_(text_embedding=section, files=files), "onnxruntime")
    assert found.files == {"1/model.onnx": "g/best.onnx", "1/best.onnx.data": "g/best.onnx.data"}


def test_no_model_can_have_a_members_name() -> None:
    name = member_name(ModelId("a", "b").triton_name, 1)
    with pytest.raises(Exception, match="is not a model id"):
        ModelId.from_any_spelling(name)


def test_the_backend_reads_what_the_control_plane_writes() -> None:
    assert native.PARAMETER == native_config.PARAMETER
    config = {"parameters": {native.PARAMETER: {"string_value": "onnxruntime"}}}
    args = {"model_name": "a--b", "model_version": "2", "model_config": json.dumps(config)}
    assert native.member_of(args) == member_name("a--b", 2)
    for nothing in ({}, {"parameters": {}}, {"parameters": {"x": {"string_value": "y"}}}):
        assert native.member_of(args | {"model_config": json.dumps(nothing)}) is None


def test_artefacts_without_a_graph_of_theirs() -> None:
    assert graph_of({"backend": "text_embedding"}) is None
    assert graph_of({}) is None


def test_the_setting_names_backends_that_fit() -> None:
    read = load_settings(environ={"MODELMORA_NATIVE_BACKENDS": "openvino, onnxruntime"})
    assert read.native_backends == ("openvino", "onnxruntime")
    with pytest.raises(SettingsError, match="must be of onnxruntime, openvino"):
        load_settings(environ={"MODELMORA_NATIVE_BACKENDS": "tensorrt"})
