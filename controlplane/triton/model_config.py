"""Triton model configurations (`config.pbtxt`) from artefact manifests.

Written through tritonclient's protobuf classes; the fields are those of Triton's
model_config.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ModelConfig = model_config_pb2.ModelConfig

MAX_BATCH_SIZE = 32


def build_model_config(triton_name: str, triton_version: int, manifest: Mapping[str, Any]) -> Any:
    """The configuration of one version.

    Args:
        triton_name: name of the model's folder.
        triton_version: the only version that this configuration serves.
        manifest: the artefact's, with `inputs`, `outputs` (shapes without the batch dimension)
            and, optionally, `max_batch_size` (0: the model does not batch) and `decoupled` (a
            request has any number of responses).

    Raises:
        ValueError: the manifest names a datatype that Triton does not have.
        KeyError: the manifest lacks a tensor's name, datatype or shape.
    """
    batch = int(manifest.get("max_batch_size", MAX_BATCH_SIZE))
    config = ModelConfig(name=triton_name, backend="python", max_batch_size=batch)
    config.version_policy.specific.versions.append(triton_version)
    for tensor in manifest["inputs"]:
        config.input.add(
            name=tensor["name"],
            data_type=data_type(tensor["datatype"]),
            dims=tensor["shape"],
            optional=bool(tensor.get("optional", False)),
        )
    for tensor in manifest["outputs"]:
        config.output.add(
            name=tensor["name"], data_type=data_type(tensor["datatype"]), dims=tensor["shape"]
        )
    if manifest.get("decoupled"):
        config.model_transaction_policy.decoupled = True
    # KIND_CPU says where Triton puts the tensors, not where the model computes: the backend picks
    # the device itself, and a stub of KIND_CPU may use a GPU.
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if batch > 0:
        # Empty on purpose. Without a delay Triton batches what queues up while the model computes,
        # which measured best. Priority levels, queue sizes and queue timeouts, any of them, make
        # its batcher miss arrivals and sleep for half a second (docs/benchmarks.md): the control
        # plane enforces them in front of it (lifecycle/admission.py).
        config.dynamic_batching.SetInParent()
    return config


def data_type(datatype: str) -> int:
    """Triton's number of a datatype of KServe v2.

    Raises:
        ValueError: there is none.
    """
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return int(model_config_pb2.DataType.Value(name))


def to_pbtxt(config: Any) -> str:
    """The configuration in protobuf's text form, as `config.pbtxt` holds it."""
    return text_format.MessageToString(config)


def read_pbtxt(text: str) -> Any:
    """Parse a `config.pbtxt`.

    Raises:
        ValueError: the text is no model configuration.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(f"not a model configuration: {error}") from error


def load_json(config: Any, *triton_versions: int) -> str:
    """The `config` parameter of a load call that serves exactly these versions."""
    chosen = ModelConfig()
    chosen.CopyFrom(config)
    serve_only(chosen, *triton_versions)
    return json_format.MessageToJson(chosen, preserving_proto_field_name=True, indent=None)


def serve_only(config: Any, *triton_versions: int) -> None:
    """Set the version policy, in place."""
    config.version_policy.Clear()
    config.version_policy.specific.versions.extend(triton_versions)


def equal_but_for_versions(one: Any, other: Any) -> bool:
    """True when two configurations differ at most in the versions that they serve.

    Triton restarts a running version when anything else of its model's configuration changes.
    """
    first, second = ModelConfig(), ModelConfig()
    first.CopyFrom(one)
    second.CopyFrom(other)
    serve_only(first)
    serve_only(second)
    return bool(first == second)


def served_versions(config: Any) -> Iterable[int]:
    """The versions of a `specific` version policy; empty for any other."""
    return tuple(config.version_policy.specific.versions)
