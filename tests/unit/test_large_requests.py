"""Large requests say to Triton what tritonclient would say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferRequestedOutput, service_pb2
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import InferenceServerException

from controlplane.triton import client, large_requests

TERMS: dict[str, Any] = {
    "outputs": [InferRequestedOutput("out")],
    "request_id": "7",
    "priority": 2,
    "timeout": 1_000_000,
    "parameters": {"top_k": 3, "text": "a", "share": 0.5, "flag": True},
    "sequence_id": 0,
    "sequence_start": False,
    "sequence_end": False,
}


def objects(items: list[bytes]) -> np.ndarray[Any, Any]:
    array = np.empty((len(items), 1), dtype=np.object_)
    array[:, 0] = items
    return array


ARRAYS = st.one_of(
    st.lists(st.binary(max_size=300), max_size=5).map(objects),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40).map(lambda v: np.array(v, np.int32)),
    st.lists(st.floats(width=32, allow_nan=False), max_size=40).map(
        lambda v: np.array([v, v], np.float32)[:, ::2]
    ),
    st.lists(st.booleans(), max_size=9).map(lambda v: np.array(v, np.bool_)),
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), ARRAYS, max_size=3))
def test_the_encoded_request_is_tritonclients(inputs: dict[str, Any]) -> None:
    raw = large_requests.encoded("name", "1", inputs, TERMS)
    expected = _get_inference_request(
        model_name="name",
        model_version="1",
        inputs=[client._tensor(name, array) for name, array in inputs.items()],
        **TERMS,
    )
    assert service_pb2.ModelInferRequest.FromString(raw) == expected


@given(st.integers(0, 2**40))
def test_lengths_are_varints(number: int) -> None:
    found, shift = 0, 0
    for byte in large_requests._varint(number):
        found |= (byte & 0x7F) << shift
        shift += 7
    assert found == number


def test_what_is_large() -> None:
    assert not large_requests.is_large({"a": objects([b"x" * 1000] * 100)})
    assert large_requests.is_large({"a": objects([b"x" * 1000] * 100), "b": np.zeros(50_000)})


def test_parameters_of_tritons_own_are_refused() -> None:
    terms = TERMS | {"parameters": {"priority": 1}}
    with pytest.raises(InferenceServerException, match="reserved"):
        large_requests.encoded("name", "1", {}, terms)
