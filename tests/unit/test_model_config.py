"""config.pbtxt: what is in it, and that it survives being written and read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as proto

from controlplane.triton.model_config import (
    build_model_config,
    load_json,
    read_pbtxt,
    served_versions,
    to_pbtxt,
)

DATATYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "backend": "text_embedding",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [384]}],
        "max_batch_size": 32,
        **changes,
    }


def test_tensors_and_batching() -> None:
    config = build_model_config("org--model", 3, manifest())
    assert (config.name, config.backend, config.max_batch_size) == ("org--model", "python", 32)
    (text,) = config.input
    assert (text.name, text.data_type, list(text.dims)) == ("text_input", proto.TYPE_STRING, [1])
    (embedding,) = config.output
    assert (embedding.name, embedding.data_type) == ("embedding", proto.TYPE_FP32)
    assert list(embedding.dims) == [384]
    assert [(g.count, g.kind) for g in config.instance_group] == [
        (1, proto.ModelInstanceGroup.KIND_CPU)
    ]
    assert list(served_versions(config)) == [3]


def test_dynamic_batching_is_left_at_its_defaults() -> None:
    # Any queue setting makes Triton's batcher sleep half a second at a time (docs/benchmarks.md).
    config = build_model_config("org--model", 1, manifest())
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching == proto.ModelDynamicBatching()


def test_default_batch_size() -> None:
    given_none = manifest()
    del given_none["max_batch_size"]
    assert build_model_config("org--model", 1, given_none).max_batch_size == 32


def test_model_that_does_not_batch_has_no_batcher() -> None:
    config = build_model_config("org--model", 1, manifest(max_batch_size=0))
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [([{"name": "x", "datatype": "STRING8", "shape": [1]}], ValueError), ([{}], KeyError)],
)
def test_unusable_tensors(inputs: list[dict[str, Any]], error: type[Exception]) -> None:
    with pytest.raises(error):
        build_model_config("org--model", 1, manifest(inputs=inputs))


def test_load_json_serves_one_version_and_leaves_the_configuration_alone() -> None:
    config = build_model_config("org--model", 1, manifest())
    loaded = json.loads(load_json(config, 7))
    assert loaded["version_policy"] == {"specific": {"versions": ["7"]}}
    assert loaded["max_batch_size"] == 32
    assert list(served_versions(config)) == [1]


def test_what_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="not a model configuration"):
        read_pbtxt("max_batch_size: many")


@given(
    name=st.from_regex(r"[A-Za-z0-9_]{1,20}--[A-Za-z0-9_.]{1,20}", fullmatch=True),
    version=st.integers(1, 2**31),
    batch=st.integers(0, 1024),
    datatypes=st.lists(st.sampled_from(DATATYPES), min_size=1, max_size=5),
    dims=st.lists(st.integers(-1, 10**6).filter(bool), min_size=1, max_size=4),
)
def test_survives_being_written_and_read(
    name: str, version: int, batch: int, datatypes: list[str], dims: list[int]
) -> None:
    tensors = [{"name": f"t{i}", "datatype": d, "shape": dims} for i, d in enumerate(datatypes)]
    config = build_model_config(
        name, version, manifest(inputs=tensors, outputs=tensors, max_batch_size=batch)
    )
    assert read_pbtxt(to_pbtxt(config)) == config
