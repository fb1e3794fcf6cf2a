"""The `config.pbtxt` of a ready-made model: what it says, and what is wrong with it.

Field names and rules are those of Triton's model_config.proto and model configuration documents.
Triton would find most faults too, but only at the first load, and some by ending its process.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2

from controlplane.triton import model_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LARGEST_CONFIG = 1024 * 1024
PYTHON = "python"
READY_MADE = "ready_made"  # the key of an artefact's manifest that says it is one
ENSEMBLE = "ensemble"
# A string parameter of the configuration, ours: how the model's health is looked at.
PROBE_PARAMETER = "modelmora_probe"
PROBES = ("inference", "ready")
# Backends by the older `platform` field, and by the file that Triton looks for in the version's
# folder: what it completes a configuration with that names neither.
_BY_PLATFORM = {
    "ensemble": ENSEMBLE,
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "tensorrt_plan": "tensorrt",
}
BY_FILE = {
    "model.py": PYTHON,
    "model.onnx": "onnxruntime",
    "model.pt": "pytorch",
    "model.plan": "tensorrt",
    "model.xml": "openvino",
    "model.graphdef": "tensorflow",
    "model.savedmodel": "tensorflow",
}
_FILE_OF = {backend: name for name, backend in BY_FILE.items() if backend != "tensorflow"}

Faults = dict[str, str]


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output; `datatype` is KServe v2's word, `shape` without the batch dimension."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False


class ReadyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What of a configuration decides how the model is taken and looked after.

    Attributes:
        backend: Triton's word; empty when neither the configuration nor a file says it.
        versions: of a `specific` version policy; empty for the others, which mean the latest.
        gpu_field: the first instance group that wants a GPU; None when none does.
        steps: models that an ensemble is made of.
        model_file: what the version's folder must hold; None where the backend has no fixed name.
        paths: further files that it names, by field.
        own_python: its Python is not the server's.
        probe: one of PROBES.
    """

    backend: str
    max_batch_size: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    decoupled: bool
    sequence: bool
    versions: list[int]
    gpu_field: str | None
    steps: list[str]
    model_file: str | None
    paths: dict[str, str]
    own_python: bool
    probe: str


def parse(content: bytes) -> Any:
    """The configuration of a file's bytes.

    Raises:
        ValueError: it is none; in words.
    """
    if len(content) > LARGEST_CONFIG:
        raise ValueError(f"is larger than {LARGEST_CONFIG // 1024} KiB")
    try:
        return model_config.read_pbtxt(content.decode("utf-8"))
    except (UnicodeDecodeError, DecodeError, RecursionError) as error:
        raise ValueError(f"is no text: {error}") from error


def read(config: Any) -> ReadyConfig:
    """What a configuration says; check it first (`faults`)."""
    backend = backend_of(config)
    return ReadyConfig(
        backend=backend,
        max_batch_size=config.max_batch_size,
        inputs=[_tensor(tensor, optional=tensor.optional) for tensor in config.input],
        outputs=[_tensor(tensor, optional=False) for tensor in config.output],
        decoupled=config.model_transaction_policy.decoupled,
        sequence=config.HasField("sequence_batching"),
        versions=list(model_config.served_versions(config)),
        gpu_field=_gpu_field(config),
        steps=[step.model_name for step in config.ensemble_scheduling.step],
        model_file=config.default_model_filename or _FILE_OF.get(backend),
        paths=dict(_paths(config)),
        own_python="EXECUTION_ENV_PATH" in config.parameters,
        probe=_probe(config),
    )


def backend_of(config: Any) -> str:
    """The backend that a configuration names; empty when it leaves that to the files."""
    named: str = config.backend or _BY_PLATFORM.get(config.platform, config.platform)
    return ENSEMBLE if config.HasField("ensemble_scheduling") else named


def faults(config: Any) -> Faults:
    """What is wrong with a configuration by itself, by field; empty when nothing is."""
    found: Faults = {}
    if config.max_batch_size < 0:
        found["max_batch_size"] = "must be 0 (the model does not batch) or more"
    for kind, tensors in (("input", config.input), ("output", config.output)):
        found |= _tensor_faults(kind, tensors)
    for number, group in enumerate(config.instance_group):
        if group.count < 0:
            found[f"instance_group[{number}].count"] = "must be 1 or more"
    if config.HasField("model_repository_agents") and config.model_repository_agents.agents:
        found["model_repository_agents"] = "is not taken: agents run code of their own in Triton"
    if _probe(config) not in PROBES:
        found[f"parameters.{PROBE_PARAMETER}"] = f"must be one of {', '.join(PROBES)}"
    return found


def serving(config: Any, triton_name: str, triton_version: int) -> Any:
    """The configuration under the name and number that the model has here, else as it is."""
    taken = model_config.ModelConfig()
    taken.CopyFrom(config)
    taken.name = triton_name
    model_config.serve_only(taken, triton_version)
    return taken


def _tensor(tensor: Any, *, optional: bool) -> Tensor:
    return Tensor(tensor.name, _datatype(tensor.data_type), list(tensor.dims), optional)


def _datatype(number: int) -> str:
    name = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _tensor_faults(kind: str, tensors: Any) -> Faults:
    found: Faults = {}
    for number, tensor in enumerate(tensors):
        field = f"{kind}[{number}]"
        if not tensor.name:
            found[f"{field}.name"] = "is required"
        if tensor.data_type == model_config_pb2.TYPE_INVALID:
            found[f"{field}.data_type"] = "is required"
        if any(size < 1 and size != -1 for size in tensor.dims):
            found[f"{field}.dims"] = "must be sizes above 0, or -1 for an open one"
    for name, count in Counter(tensor.name for tensor in tensors).items():
        if count > 1 and name:
            found[kind] = f"has {count} tensors named {name!r}"
    return found


def _gpu_field(config: Any) -> str | None:
    kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
    for number, group in enumerate(config.instance_group):
        if group.kind == kind:
            return f"instance_group[{number}].kind"
        if group.gpus:
            return f"instance_group[{number}].gpus"
    return None


def _paths(config: Any) -> Iterator[tuple[str, str]]:
    """Files that the configuration names, relative to the model's or the version's folder."""
    if config.default_model_filename:
        yield "default_model_filename", config.default_model_filename
    for capability, name in sorted(config.cc_model_filenames.items()):
        yield f"cc_model_filenames.{capability}", name
    for number, tensor in enumerate(config.output):
        if tensor.label_filename:
            yield f"output[{number}].label_filename", tensor.label_filename
    for number, name in enumerate(config.model_operations.op_library_filename):
        yield f"model_operations.op_library_filename[{number}]", name
    for number, sample in enumerate(config.model_warmup):
        for name, given in sorted(sample.inputs.items()):
            if given.input_data_file:
                yield f"model_warmup[{number}].inputs.{name}", given.input_data_file


def _probe(config: Any) -> str:
    parameters: Mapping[str, Any] = config.parameters
    if PROBE_PARAMETER not in parameters:
        return PROBES[0]
    return str(parameters[PROBE_PARAMETER].string_value)
