"""Paths, checks of infer bodies, and error tables of the v2 gateway: everything but the relay."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import errors
from controlplane.errors import InvalidInput
from controlplane.gateway import errors as gateway_errors
from controlplane.gateway.errors import (
    GRPC_CODE,
    HTTP_STATUS,
    BodyTooLarge,
    NotOffered,
    UnknownRoute,
    UnsupportedMedia,
    lookup,
)
from controlplane.gateway.v2_checks import check_infer_body
from controlplane.gateway.v2_compression import decompress
from controlplane.gateway.v2_paths import parse_target

LIMIT = 1_000_000


# -- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("org/repo", ("org/repo", None, "")),
        ("org%2Frepo", ("org/repo", None, "")),
        ("org%252Frepo/ready", ("org/repo", None, "ready")),
        ("org--repo", ("org--repo", None, "")),
        ("org/repo/", ("org/repo", None, "")),
        ("org/repo/infer", ("org/repo", None, "infer")),
        ("org--repo/infer", ("org--repo", None, "infer")),
        ("org%2Frepo/versions/1/infer", ("org/repo", "1", "infer")),
        ("org/repo/versions/main", ("org/repo", "main", "")),
        ("org/repo/versions/main/ready", ("org/repo", "main", "ready")),
        ("org/repo/versions/feature%2Fx/infer", ("org/repo", "feature/x", "infer")),
        ("org/repo/versions/feature/x/infer", ("org/repo", "feature/x", "infer")),
        ("org/repo/versions/feature/x", ("org/repo", "feature/x", "")),
        ("org/repo/versions/ready", ("org/repo", "ready", "")),
        ("org/config", ("org/config", None, "")),
        ("org/config/config", ("org/config", None, "config")),
        ("simple", ("simple", None, "")),
        ("simple/infer", ("simple", None, "infer")),
        ("simple/versions/1/infer", ("simple", "1", "infer")),
        ("org/repo/generate_stream", ("org/repo", None, "generate_stream")),
        ("org/repo/trace/setting", ("org/repo", None, "trace")),
    ],
)
def test_paths(path, target):
    assert parse_target(path) == target


@pytest.mark.parametrize("path", ["", "org/repo/nonsense", "org/repo/versions", "org/repo/infer/x"])
def test_paths_that_mean_nothing(path):
    with pytest.raises(UnknownRoute):
        parse_target(path)


# -- checks ------------------------------------------------------------------------------------


def check(request, header_length=None, encoding=None, limit=LIMIT):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return check_infer_body(body, header_length=header_length, encoding=encoding, limit=limit)


def tensor(**changes):
    return {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, 3, 4]} | changes


def test_a_good_request_passes_whole():
    request = {
        "id": "7",
        "inputs": [tensor(parameters={"a": 1})],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        "parameters": {"priority": 2, "timeout": 100, "text": "ü", "binary_data_output": True},
    }
    checked = check(request)
    assert json.loads(checked.body) == request
    assert (checked.header_length, checked.batch_size) == (None, 2)
    assert (checked.priority, checked.timeout_us, checked.in_sequence) == (2, 100, False)


@pytest.mark.parametrize(
    "good",
    [
        tensor(data=[[1, 2], [3, 4]]),
        tensor(shape=[0], data=[]),
        tensor(shape=[], data=[1]),
        tensor(shape=[3, 0, 5], data=[]),
        tensor(datatype="BYTES", shape=[1, 2], data=["a", ""]),
        tensor(datatype="BOOL", shape=[2], data=[True, False]),
        tensor(datatype="UINT64", shape=[1], data=[2**64 - 1]),
        tensor(datatype="INT64", shape=[2], data=[-(2**63), 2**63 - 1]),
        tensor(datatype="INT8", shape=[2], data=[-128, 127]),
    ],
)
def test_good_tensors(good):
    assert json.loads(check({"inputs": [good]}).body)["inputs"][0]["data"] == good["data"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (tensor(shape=[1, 4611686018427387904]), "impossible shape"),
        (tensor(shape=[2**31 - 1] * 3, data=[1]), "too many elements"),
        (tensor(shape=[2**31 - 1] * 3 + [0], data=[]), "too many elements"),
        (tensor(shape=[1] * 33, data=[1]), "impossible shape"),
        (tensor(shape=[2, 3]), "has 4 elements"),
        (tensor(shape=[-1, 2]), ">= 0"),
        (tensor(shape="2"), "array"),
        (tensor(shape=[2.5]), "int"),
        (tensor(shape=[True]), "int"),
        (tensor(data=[1, 2, 3, "4"]), "float"),
        (tensor(data=[1, 2, 3, True]), "float"),
        (tensor(data=[[1, 2], [3, "4"]]), "float"),
        (tensor(data=[1, None, 3, 4]), "float"),
        (tensor(data={"a": 1}), "array"),
        (tensor(data=None), "array"),
        (tensor(datatype="FP32X"), "unknown datatype"),
        (tensor(datatype="FP16"), "no JSON form"),
        (tensor(datatype="UINT8", data=[1, 2, 3, 256]), "255"),
        (tensor(datatype="INT32", data=[1, 2, 3, 2.5]), "int"),
        (tensor(datatype="BYTES"), "str"),
        (tensor(name=7), "str"),
        (tensor(parameters={"binary_data_size": 16}), "comes as JSON"),
        (tensor(parameters=[1]), "object"),
        ({"name": "x", "datatype": "FP32", "shape": [1]}, "has no data"),
        ({"name": "x", "shape": [1], "data": [1]}, "datatype"),
        ([], "object"),
    ],
)
def test_bad_tensors(bad, words):
    with pytest.raises(InvalidInput, match=words):
        check({"inputs": [bad]})


@pytest.mark.parametrize(
    "bad",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"inputs": {}}', b'{"inputs": []}'),
        b'{"inputs": [{"name": "x\xff"}]}',
        b"[" * 200_000,
        b'{"inputs":' + b"[" * 200_000,
        b'{"id": 5, "inputs": []}',
    ],
)
def test_bad_requests(bad):
    with pytest.raises(InvalidInput):
        check(bad)


def test_deeply_nested_data():
    data = b"[" * 100_000 + b"]" * 100_000
    request = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + data + b"}]}"
    with pytest.raises(InvalidInput, match="nested too deeply"):
        check(request)


@pytest.mark.parametrize(
    "parameters",
    [
        *({"priority": v} for v in (-1, "1", 1.5, True, 2**64)),
        *({"timeout": -1}, {"sequence_start": 1}, {"sequence_id": 1.5}),
        *({"binary_data_output": "yes"}, {"own": None}, {"own": [1]}),
    ],
)
def test_wrong_parameters(parameters):
    with pytest.raises(InvalidInput, match="arameter"):
        check({"inputs": [tensor()], "parameters": parameters})


def test_same_name_twice():
    with pytest.raises(InvalidInput, match="same name"):
        check({"inputs": [tensor(), tensor()]})


def test_what_was_checked_is_what_is_sent():
    """Our parser takes the last of two equal keys, Triton's takes the first."""
    twice = (
        b'{"inputs":[{"name":"x","datatype":"FP32","data":[1],'
        b'"shape":[4611686018427387904],"shape":[1]}]}'
    )
    try:
        sent = check(twice).body
    except InvalidInput:
        return
    assert sent.count(b"shape") == 1


def test_shared_memory_is_off_by_default():
    shared = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    with pytest.raises(NotOffered):
        check({"inputs": [tensor(parameters=shared)]})


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_outputs_are_not_classified_or_shared(name):
    with pytest.raises(NotOffered):
        check({"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {name: 1}}]})


def binary(size=16, total=16, **changes):
    request = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2]}
            | {"parameters": {"binary_data_size": size}}
            | changes
        ]
    }
    header = json.dumps(request, indent=1).encode()
    return header + bytes(total), str(len(header))


def test_binary_tensors_pass_untouched():
    body, length = binary()
    checked = check(body, header_length=length)
    assert checked.body[checked.header_length :] == bytes(16)
    assert json.loads(checked.body[: checked.header_length]) == json.loads(body[: int(length)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 12, "total": 12}, "does not fit"),
        ({"size": 16, "total": 20}, "claim 16 bytes"),
        ({"size": 16, "total": 3}, "claim 16 bytes"),
        ({"size": -1}, "not a number of bytes"),
        ({"size": True}, "not a number of bytes"),
        ({"size": "16"}, "not a number of bytes"),
        ({"shape": [4611686018427387904]}, "impossible shape"),
        ({"shape": [1, 4611686018427387904], "size": 0, "total": 0}, "impossible shape"),
        ({"datatype": "BYTES", "shape": [100, 100]}, "does not fit"),
        ({"data": [1, 2, 3, 4]}, "comes as JSON"),
    ],
)
def test_bad_binary_tensors(arguments, words):
    body, length = binary(**arguments)
    with pytest.raises(InvalidInput, match=words):
        check(body, header_length=length)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "999999999", "9" * 5000, "²", " 5"])
def test_bad_header_lengths(length):
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        check(b"{}", header_length=length)


def test_a_raw_binary_request_has_no_json():
    assert check(b"\x00\x01", header_length="0")[:3] == (b"\x00\x01", 0, None)


@given(st.binary(max_size=2000))
def test_compressed_bodies(body):
    assert decompress(gzip.compress(body), "gzip", LIMIT) == body
    assert decompress(zlib.compress(body), "deflate", LIMIT) == body
    assert decompress(body, None, LIMIT) == decompress(body, "identity", LIMIT) == body


def test_bombs_and_broken_compression():
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(BodyTooLarge):
        decompress(bomb, "gzip", LIMIT)
    with pytest.raises(InvalidInput, match="cut off"):
        decompress(gzip.compress(b"x" * 100)[:-9], "gzip", LIMIT)
    with pytest.raises(InvalidInput, match="not valid gzip"):
        decompress(b"plain", "gzip", LIMIT)
    with pytest.raises(UnsupportedMedia, match="br"):
        decompress(b"x", "br", LIMIT)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "name", "datatype", "shape", "data", "parameters", "id"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values, st.none() | st.integers(0, 50).map(str))
def test_nothing_but_our_errors_comes_of_any_json(value, header_length):
    with contextlib.suppress(InvalidInput, NotOffered):
        check(value, header_length=header_length)


# -- error tables ------------------------------------------------------------------------------


def every_error():
    pending = [errors.ModelMoraError]
    while pending:
        error = pending.pop()
        pending += error.__subclasses__()
        if error.__module__ in (errors.__name__, gateway_errors.__name__):
            yield error


# Not told to clients, or rightly an internal error.
INTERNAL = {
    *("ExportFailed", "LoadFailed", "InferenceFailed", "StartupError", "SettingsError"),
    *("DatabaseDamaged", "DatabaseInUse"),
}


@pytest.mark.parametrize("error", sorted(set(every_error()), key=lambda e: e.__name__))
def test_every_error_has_its_place_in_the_tables(error):
    instance = error.__new__(error)
    assert 400 <= lookup(HTTP_STATUS, instance, 0) < 600
    assert isinstance(lookup(GRPC_CODE, instance, None), grpc.StatusCode)
    internal = error is errors.ModelMoraError or error.__name__ in INTERNAL
    assert (lookup(HTTP_STATUS, instance, 0) == 500) is internal


def test_codes_are_unique():
    codes = [error.code for error in set(every_error())]
    assert len(codes) == len(set(codes))
