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
# The document's max_wait of 100 ms is not taken over: without any delay Triton batches what has
# queued up while the model computes, which measured best; a delay adds its length to every
# request on a quiet server.
MAX_QUEUE_DELAY_US = 0
PRIORITY_LEVELS = 4  # critical, high, medium, low
DEFAULT_PRIORITY_LEVEL = 3
# A request can only shorten the default, so this is the longest that anybody may ask for.
QUEUE_TIMEOUT_US = 600 * 1_000_000
MAX_QUEUE_SIZE = 1000


def build_model_config(triton_name: str, triton_version: int, manifest: Mapping[str, Any]) -> Any:
    """The configuration of one version.

    Args:
        triton_name: name of the model's folder.
        triton_version: the only version that this configuration serves.
        manifest: the artefact's, with `inputs`, `outputs` (shapes without the batch dimension)
            and, optionally, `max_batch_size` (0: the model does not batch).

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
            data_type=_data_type(tensor["datatype"]),
            dims=tensor["shape"],
            optional=bool(tensor.get("optional", False)),
        )
    for tensor in manifest["outputs"]:
        config.output.add(
            name=tensor["name"], data_type=_data_type(tensor["datatype"]), dims=tensor["shape"]
        )
    # KIND_CPU says where Triton puts the tensors, not where the model computes: the backend picks
    # the device itself, and a stub of KIND_CPU may use a GPU.
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if batch > 0:
        _set_batching(config.dynamic_batching)
    return config


def _set_batching(batching: Any) -> None:
    batching.max_queue_delay_microseconds = MAX_QUEUE_DELAY_US
    batching.preserve_ordering = False
    batching.priority_levels = PRIORITY_LEVELS
    batching.default_priority_level = DEFAULT_PRIORITY_LEVEL
    policy = batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = QUEUE_TIMEOUT_US
    policy.allow_timeout_override = True
    policy.max_queue_size = MAX_QUEUE_SIZE


def _data_type(datatype: str) -> int:
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
