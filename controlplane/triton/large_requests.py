"""Requests with megabytes of inputs, encoded off the event loop and copied once.

tritonclient copies an input three times on the loop's own thread (into its tensor, the message, and
the encoding of that): with 40 MB nobody else is served for a quarter of a second. Here the
contents go into the encoded message by one `bytes.join`, which lets other threads run meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import np_to_triton_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

METHOD = "/inference.GRPCInferenceService/ModelInfer"
# Below it the thread costs more than the copies.
LARGE = 256 * 1024
# Field 7 of ModelInferRequest, `repeated bytes raw_input_contents` (grpc_service.proto). What is
# appended to an encoded message adds to its repeated fields (protobuf.dev, "Encoding").
_RAW_INPUT_CONTENTS = bytes([7 << 3 | 2])

Array = npt.NDArray[Any]


def is_large(inputs: Mapping[str, Array]) -> bool:
    """Whether the inputs are worth a thread."""
    return sum(map(_size, inputs.values())) >= LARGE


def encoded(
    model_name: str, model_version: str, inputs: Mapping[str, Array], terms: Mapping[str, Any]
) -> bytes:
    """A ModelInferRequest, ready to be sent.

    Args:
        terms: what else the request has, as tritonclient's `infer` names it.

    Raises:
        InferenceServerException: a parameter has a name of Triton's own.
    """
    tensors = [InferInput(name, list(a.shape), datatype(a)) for name, a in inputs.items()]
    head = _get_inference_request(
        model_name=model_name, model_version=model_version, inputs=tensors, **terms
    )
    parts = [head.SerializeToString()]
    for array in inputs.values():
        contents = list(_contents(array))
        parts += [_RAW_INPUT_CONTENTS, _varint(sum(map(len, contents))), *contents]
    return b"".join(parts)


def datatype(array: Array) -> str:
    """Triton's name for the array's type."""
    return "BYTES" if array.dtype == np.object_ else str(np_to_triton_dtype(array.dtype))


def _size(array: Array) -> int:
    return sum(map(len, array.flat)) if array.dtype == np.object_ else array.nbytes


def _contents(array: Array) -> Iterator[bytes]:
    """A tensor's bytes in row-major order; BYTES elements each behind their length."""
    if array.dtype != np.object_:
        yield array.tobytes()
        return
    for element in array.flat:
        raw = element if isinstance(element, bytes) else str(element).encode()
        yield len(raw).to_bytes(4, "little")
        yield raw


def _varint(number: int) -> bytes:
    """As protobuf writes lengths: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
