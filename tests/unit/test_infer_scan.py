"""infer_scan.py against the real protobuf classes, however the bytes arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from controlplane.errors import InvalidInput, ModelMoraError
from controlplane.gateway import wire
from controlplane.gateway.errors import NotOffered
from controlplane.gateway.infer_scan import InferScan, KnownHeads
from controlplane.gateway.v2 import check_shape

if TYPE_CHECKING:
    import random

names = st.text(max_size=40)
shapes = st.lists(st.integers(0, 1000), max_size=4)  # 10**12: fewer than may be


def scan_of(message: bytes, cuts=()) -> InferScan:
    scan, at = InferScan(), 0
    for cut in [*sorted(c % (len(message) + 1) for c in cuts), len(message)]:
        scan.feed(message[at:cut])
        at = cut
    scan.finish()
    return scan


@st.composite
def requests(draw):
    request = pb.ModelInferRequest(model_name=draw(names), model_version=draw(names))
    request.id = draw(names)
    for shape in draw(st.lists(shapes, max_size=3)):
        tensor = request.inputs.add(name=draw(names), datatype="FP32", shape=shape)
        tensor.parameters["x"].string_param = "y" * draw(st.integers(0, 50))
        tensor.contents.fp32_contents.extend([1.0] * draw(st.integers(0, 40)))
    for name in draw(st.lists(names, max_size=2)):
        request.outputs.add(name=name)
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    return request


@given(requests(), st.lists(st.integers(0, 10_000), max_size=6))
def test_reads_what_the_clients_classes_write_however_it_is_cut(request, cuts):
    scan = scan_of(request.SerializeToString(), cuts)
    assert scan.names == (request.model_name, request.model_version)


@given(requests(), st.randoms(use_true_random=False), st.lists(st.integers(0, 10_000), max_size=4))
def test_fields_may_come_in_any_order(request, order: random.Random, cuts):
    message = request.SerializeToString()
    parts, at = [], 0
    for field in wire.fields(message):
        parts.append(message[at : field.end])
        at = field.end
    order.shuffle(parts)
    assert scan_of(b"".join(parts), cuts).names == (request.model_name, request.model_version)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=40),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=4),
)
def test_shapes_are_checked_packed_or_not(shape, packed, cuts):
    if packed:
        tensor = pb.ModelInferRequest.InferInputTensor(name="x", shape=shape).SerializeToString()
    else:
        sizes = (wire.varint(3 << 3) + wire.varint(size % 2**64) for size in shape)
        tensor = wire.text_field(1, "x") + b"".join(sizes)
    message = wire.text_field(1, "m") + wire.bytes_field(5, tensor) + wire.bytes_field(7, b"abc")
    assert list(pb.ModelInferRequest.FromString(message).inputs[0].shape) == shape
    try:
        check_shape([size % 2**64 for size in shape])
    except InvalidInput:
        with pytest.raises(InvalidInput):
            scan_of(message, cuts)
    else:
        scan_of(message, cuts)


@given(st.booleans(), st.lists(st.integers(0, 10_000), max_size=4))
def test_classification_is_refused(asked, cuts):
    request = pb.ModelInferRequest(model_name="m")
    output = request.outputs.add(name="classification")
    output.parameters["classification" if asked else "declassification"].int64_param = 1
    if asked:
        with pytest.raises(NotOffered):
            scan_of(request.SerializeToString(), cuts)
    else:
        scan_of(request.SerializeToString(), cuts)


@given(st.integers(0, 2**63 - 1), st.integers(-5, 2**63 - 1), st.integers(0, 9))
def test_parameters(priority, timeout, sequence):
    request = pb.ModelInferRequest(model_name="m")
    request.parameters["priority"].uint64_param = priority
    request.parameters["timeout"].int64_param = timeout
    if sequence:
        request.parameters["sequence_id"].int64_param = sequence
    scan = scan_of(request.SerializeToString())
    assert (scan.priority, scan.timeout_us) == (priority, max(timeout, 0))
    assert scan.in_sequence == bool(sequence)


def test_the_model_is_certain_before_its_tensors_have_come():
    request = pb.ModelInferRequest(model_name="m", model_version="2")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1000])
    request.raw_input_contents.append(b"x" * 4000)
    scan = InferScan()
    scan.feed(request.SerializeToString()[:40])
    assert (scan.settled, scan.names) == (True, ("m", "2"))


@given(st.binary(max_size=80), st.lists(st.integers(0, 100), max_size=4))
def test_any_bytes_are_read_as_a_parser_reads_them_or_refused(message, cuts):
    try:
        scan = scan_of(message, cuts)
    except ModelMoraError:
        return
    try:
        parsed = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        return  # a parser looks into what we skip
    assert scan.names == (parsed.model_name, parsed.model_version)
    for tensor in parsed.inputs:  # nothing impossible has slipped through
        check_shape([size % 2**64 for size in tensor.shape])


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x05abc",  # cut off
        b"\x0a",
        b"\x02\x00",  # field 0
        b"\x0b\x0c",  # a group
        b"\x0a\x02\xff\xfe",  # not UTF-8
        b"\x0a\xff\xff\x7f",  # a name of 2 MB
        b"\x2a\x02\x1a\x05",  # a shape beyond its tensor
        b"\x2a\x04\x1a\x01\x80\x00",  # a size beyond its shape
        b"\x08" + b"\xff" * 11,
    ],
)
def test_malformed_messages_are_refused(message):
    with pytest.raises(InvalidInput):
        scan_of(message)


# -- heads that are known ------------------------------------------------------------------------


def names_by(scanner, message: bytes):
    try:
        return scanner(message)
    except ModelMoraError:
        return None


@given(st.lists(requests(), min_size=1, max_size=6), st.lists(st.binary(max_size=40), max_size=4))
def test_what_is_known_is_what_reading_it_would_tell(seen, other_tensors):
    known = KnownHeads()
    for request in seen:
        request.id = ""
        message = request.SerializeToString()
        known.learn(message, 0, scan_of(message))
    for request in seen:
        request.ClearField("raw_input_contents")
        request.raw_input_contents.extend([*other_tensors, b"more"])
        message = request.SerializeToString()
        assert known.find(message, 0) in (None, scan_of(message).names)
        for end in range(len(message)):  # cut off within a tensor, or within the head
            found = known.find(b"12345" + message[:end], 5)
            assert found in (None, names_by(lambda m: scan_of(m).names, message[:end]))


def test_the_next_request_of_a_client_is_known():
    known = KnownHeads()
    request = pb.ModelInferRequest(model_name="org/model")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(b"first")
    message = request.SerializeToString()
    assert known.find(message, 0) is None
    known.learn(message, 0, scan_of(message))
    request.raw_input_contents[0] = b"another, and a longer one" * 20
    assert known.find(request.SerializeToString(), 0) == ("org/model", "")
    request.inputs[0].shape[0] = 2
    assert known.find(request.SerializeToString(), 0) is None


@pytest.mark.parametrize("what", ["id", "priority", "timeout", "sequence_id"])
def test_what_asks_for_something_special_is_read_each_time(what):
    known = KnownHeads()
    request = pb.ModelInferRequest(model_name="org/model", raw_input_contents=[b"x"])
    if what == "id":
        request.id = "7"
    else:
        request.parameters[what].int64_param = 3
    message = request.SerializeToString()
    known.learn(message, 0, scan_of(message))
    assert known.find(message, 0) is None


def test_what_follows_a_known_head_is_only_tensors():
    known = KnownHeads()
    head, tensor = wire.text_field(1, "org/model"), wire.bytes_field(7, b"abc")
    message = head + tensor
    known.learn(message, 0, scan_of(message))
    assert known.find(head + tensor + tensor, 0) == ("org/model", "")
    for more in (wire.text_field(1, "org/other"), wire.text_field(3, "id"), b"\x3a", b"\x3a\x05ab"):
        assert known.find(message + more, 0) is None


def test_many_heads_take_little_room():
    known = KnownHeads()
    for number in range(2000):
        message = wire.text_field(1, "x" * (number % 50) + str(number)) + wire.bytes_field(7, b"")
        known.learn(message, 0, scan_of(message))
        assert known.find(message, 0) is not None
    assert len(known._names) <= 256
    assert len(known._sizes) <= 8
