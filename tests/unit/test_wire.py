"""wire.py against the real protobuf classes: whatever a parser makes of the bytes, so do we."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from controlplane.gateway import wire

REQUESTS = (
    pb.ModelInferRequest,
    pb.ModelMetadataRequest,
    pb.ModelReadyRequest,
    pb.ModelConfigRequest,
)
# ModelStatisticsRequest calls the field `name`, like all but ModelInferRequest do.
names = st.text(max_size=40)


def make_request(cls, name: str, version: str):
    field = "model_name" if cls is pb.ModelInferRequest else "name"
    version_field = "model_version" if cls is pb.ModelInferRequest else "version"
    return cls(**{field: name, version_field: version})


def infer_request(name: str, version: str, raw: bytes) -> pb.ModelInferRequest:
    request = make_request(pb.ModelInferRequest, name, version)
    request.id = "7"
    request.inputs.add(name="x", datatype="FP32", shape=[1, -1])
    request.parameters["priority"].uint64_param = 3
    request.raw_input_contents.append(raw)
    return request


@given(st.sampled_from(REQUESTS), names, names)
def test_reads_what_the_clients_classes_write(cls, name, version):
    message = make_request(cls, name, version).SerializeToString()
    assert wire.read_names(message) == (name, version)


@given(names, names, names, names, st.binary(max_size=300))
def test_rewrites_names_and_nothing_else(old_name, old_version, new_name, new_version, raw):
    message = infer_request(old_name, old_version, raw).SerializeToString()
    tail = wire.names_tail(wire.read_names(message), wire.Names(new_name, new_version))
    rewritten = message + tail
    assert pb.ModelInferRequest.FromString(rewritten) == infer_request(new_name, new_version, raw)
    assert wire.read_names(rewritten) == (new_name, new_version)


@given(names, names)
def test_same_names_cost_nothing(name, version):
    same = wire.Names(name, version)
    assert wire.names_tail(same, same) == b""


@given(st.lists(st.tuples(st.sampled_from([1, 2]), names), max_size=8))
def test_of_repeated_fields_the_last_counts(parts):
    message = b"".join(wire.text_field(number, text) for number, text in parts)
    parsed = pb.ModelInferRequest.FromString(message)
    assert wire.read_names(message) == (parsed.model_name, parsed.model_version)


def field_bytes(number: int, wire_type: int, value: int, content: bytes) -> bytes:
    tag = wire.varint(number << 3 | wire_type)
    return {
        0: tag + wire.varint(value),
        1: tag + value.to_bytes(8, "little"),
        2: tag + wire.varint(len(content)) + content,
        3: tag + wire.text_field(9, "in") + wire.varint(number << 3 | 4),
        5: tag + (value % 2**32).to_bytes(4, "little"),
    }[wire_type]


odd_fields = st.builds(
    field_bytes,
    st.sampled_from([1, 2, 15, 16, 99, 2**29 - 1]),
    st.sampled_from([0, 1, 2, 3, 5]),
    st.integers(0, 2**64 - 1),
    st.text(max_size=9).map(str.encode),
)


@given(st.lists(odd_fields, max_size=10))
def test_unknown_fields_and_foreign_wire_types_are_skipped(parts):
    message = b"".join(parts)
    parsed = pb.ModelInferRequest.FromString(message)
    assert wire.read_names(message) == (parsed.model_name, parsed.model_version)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_a_parser_reads_them_or_refused(message):
    """Where a parser succeeds we see the same names; where we succeed, so may the parser.

    A parser also looks inside the fields that we skip, so it may refuse more than we do.
    """
    try:
        parsed = pb.ModelReadyRequest.FromString(message)
    except DecodeError:
        parsed = None
    try:
        ours = wire.read_names(message)
    except wire.MalformedMessage:
        assert parsed is None
        return
    # These messages have no fields to look into: both must agree.
    assert parsed is not None
    assert ours == (parsed.name, parsed.version)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x0a\x05abc", "cut off"),
        (b"\x0a", "cut off"),
        (b"\x0a\xff", "cut off"),
        (b"\x00\x01", "impossible number"),
        (b"\x0f", "impossible type"),
        (b"\x0c", "impossible type"),
        (b"\x0b\x14", "not begun"),
        (b"\x0b" * 200, "too deeply"),
        (b"\xff" * 11, "too long"),
        (b"\xff\xff\xff\xff\x7f\x00", "impossible number"),
        (b"\x0a\x01\xff", "UTF-8"),
        (b"\x09\x01", "cut off"),
    ],
)
def test_broken_messages_say_how(message, reason):
    with pytest.raises(wire.MalformedMessage, match=reason):
        wire.read_names(message)


@given(st.integers(0, 2**64 - 1))
def test_varints_are_those_of_protobuf(value):
    parameter = pb.InferParameter(uint64_param=value).SerializeToString()
    assert parameter.endswith(wire.varint(value))


def test_booleans():
    assert pb.ServerLiveResponse.FromString(wire.bool_field(1, value=True)).live
    assert wire.bool_field(1, value=False) == pb.ServerLiveResponse(live=False).SerializeToString()


def test_a_large_tensor_is_skipped_not_walked():
    message = infer_request("a", "1", bytes(50_000_000)).SerializeToString()
    assert len(list(wire.fields(message))) == 6
    assert wire.read_names(message) == ("a", "1")


def test_keeps_the_named_texts_of_a_repeated_field():
    metadata = pb.ServerMetadataResponse(name="triton", version="2", extensions=["a", "b", "c"])
    kept = wire.keep_texts(metadata.SerializeToString(), 3, {"a", "c"})
    assert pb.ServerMetadataResponse.FromString(kept) == pb.ServerMetadataResponse(
        name="triton", version="2", extensions=["a", "c"]
    )
