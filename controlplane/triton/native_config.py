"""A graph on one of Triton's own backends: which graphs fit, and the model it becomes. Rules only.

Of an exported model only its graph is Triton's: a member, a model of its own beside the model that
clients call. That one stays a Python backend, which makes the tensors of texts or pictures and
asks the member for the rest (business logic scripting, BLS). The member has no folder: its
configuration and files go along with the call that loads it, so it is in no index and nobody but
the control plane can load it. Its batch dimension is a plain open one: batches are made by the
Python backend, which knows how long its texts are.

Which file and which tensors are the graph's is the business of the backend that wrote them into
its section of the manifest: one function of `_GRAPHS` for each. Fields: Triton's
model_config.proto; `default_model_filename` of ONNX files: its OpenVINO backend's documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import json_format

from controlplane.triton.model_config import ModelConfig, data_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# A string parameter of the calling model's configuration: the backend that has the member.
PARAMETER = "modelmora_native"
# Larger ones stay in the model's process: a load carries them in one message of at most 2 GiB,
# and the control plane holds them meanwhile.
LARGEST_FILES = 1024 * 1024 * 1024
# Triton backends that run what an engine of ours runs, in the order of preference, and the file's
# name there. fp32 only: another precision is the result of a measurement, of that very engine.
_BACKENDS = {
    "onnxruntime": {"onnxruntime": "model.onnx", "openvino": "model.onnx"},
    "openvino": {"openvino": "model.onnx", "onnxruntime": "model.onnx"},
}
_PRECISION = "fp32"


class GraphTensor(msgspec.Struct, frozen=True):
    """`datatype` is KServe v2's word, `shape` has the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Graph(msgspec.Struct, frozen=True):
    """`file` is a path in the artefact."""

    file: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


class Member(msgspec.Struct, frozen=True):
    """A graph as a model of Triton's.

    Attributes:
        name: in Triton; no registered model can have it.
        config: the `config` parameter of the load, JSON.
        files: path in the artefact by the name that the file has for Triton.
    """

    name: str
    backend: str
    config: str
    files: dict[str, str]


def member_name(triton_name: str, triton_version: int) -> str:
    """No model id has this Triton name: those have `--` once."""
    return f"{triton_name}--{triton_version}"


def choose(manifest: Mapping[str, Any], available: Sequence[str]) -> str | None:
    """The backend of `available` that runs the artefact's graph; None when none does."""
    if not available or manifest.get("precision", _PRECISION) != _PRECISION:
        return None
    graph = graph_of(manifest)
    if graph is None or _size(manifest, graph) > LARGEST_FILES:
        return None
    fitting = _BACKENDS.get(str(manifest.get("engine")), {})
    return next((name for name in fitting if name in available), None)


def member(
    triton_name: str, triton_version: int, manifest: Mapping[str, Any], backend: str
) -> Member:
    """The model that a backend, as `choose` gave it, makes of an artefact's graph."""
    graph = graph_of(manifest)
    assert graph is not None, manifest
    file = _BACKENDS[str(manifest["engine"])][backend]
    config = ModelConfig(
        name=member_name(triton_name, triton_version),
        backend=backend,
        max_batch_size=0,
        default_model_filename=file,
    )
    config.version_policy.specific.versions.append(1)
    for tensor in graph.inputs:
        config.input.add(name=tensor.name, data_type=data_type(tensor.datatype), dims=tensor.shape)
    for tensor in graph.outputs:
        config.output.add(name=tensor.name, data_type=data_type(tensor.datatype), dims=tensor.shape)
    # No instance group: Triton takes a GPU where the server has one.
    return Member(
        name=config.name,
        backend=backend,
        config=json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None),
        files={_beside(file, path, graph.file): path for path in _paths(manifest, graph)},
    )


def graph_of(manifest: Mapping[str, Any]) -> Graph | None:
    """The graph of an artefact; None where its backend is not known to have one here."""
    describe = _GRAPHS.get(str(manifest.get("backend")))
    section = manifest.get(str(manifest.get("backend")))
    if describe is None or not isinstance(section, dict):
        return None
    return describe(section)


def _text_embedding(section: Mapping[str, Any]) -> Graph:
    """Tokens in, vectors out; pooling is in the graph."""
    return Graph(
        file=str(section["model_file"]),
        inputs=tuple(GraphTensor(str(n), "INT64", (-1, -1)) for n in section["input_names"]),
        outputs=(
            GraphTensor(str(section["output_name"]), "FP32", (-1, int(section["dimension"]))),
        ),
    )


_GRAPHS: dict[str, Callable[[Mapping[str, Any]], Graph]] = {"text_embedding": _text_embedding}


def _paths(manifest: Mapping[str, Any], graph: Graph) -> list[str]:
    """The graph's file and its weights beside it (ONNX keeps large ones in files of their own)."""
    there = [str(entry["path"]) for entry in manifest["files"]]
    return [path for path in there if path == graph.file or path.startswith(f"{graph.file}.")]


def _beside(file: str, path: str, graph_file: str) -> str:
    # the graph names its further files relative to itself, by their own names
    return f"1/{file if path == graph_file else path.rpartition('/')[2]}"


def _size(manifest: Mapping[str, Any], graph: Graph) -> int:
    wanted = set(_paths(manifest, graph))
    return sum(int(entry["size"]) for entry in manifest["files"] if entry["path"] in wanted)
