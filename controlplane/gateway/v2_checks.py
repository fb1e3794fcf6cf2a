"""Checks of a v2 infer request over HTTP before Triton sees it.

The server trusts the shapes of JSON tensors: a body of some 150 bytes with an impossible one ends
its process, and most faults in JSON come back as status 500. So the JSON part is parsed here, its
shapes are held against the data that came with them, and what was checked is what is forwarded,
encoded anew: a key given twice, of which we would check one and Triton read the other, is gone.
Protocol: KServe v2 REST with Triton's binary tensor data extension.
"""

from __future__ import annotations

import functools
import math
import zlib
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from controlplane.errors import InvalidInput
from controlplane.gateway.errors import (
    BodyTooLarge,
    NotOffered,
    UnsupportedMedia,
    UnwritableAnswer,
)
from controlplane.gateway.v2 import SHARED_MEMORY_OFF, check_shape, refuse_classification

T = TypeVar("T")

_SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}


def _integers(low: int, high: int) -> Any:
    return list[Annotated[int, msgspec.Meta(ge=low, le=high)]]


# FP16 and BF16 have no JSON form in Triton: they travel as binary data only.
_ELEMENTS: dict[str, Any] = {
    "BYTES": list[str],
    "BOOL": list[bool],
    "FP32": list[float],
    "FP64": list[float],
    "UINT64": list[Annotated[int, msgspec.Meta(ge=0)]],
    "INT64": list[int],
    **{f"UINT{bits}": _integers(0, 2**bits - 1) for bits in (8, 16, 32)},
    **{f"INT{bits}": _integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32)},
}

_Dimension = Annotated[int, msgspec.Meta(ge=0)]
_Unsigned = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Parameters that mean something to Triton (its parameters, sequence and binary extensions); a
# wrong type would come back as status 500.
_REQUEST_PARAMETERS: dict[str, Any] = {
    "priority": _Unsigned,
    "timeout": _Unsigned,
    "sequence_id": _Unsigned | str,
    "sequence_start": bool,
    "sequence_end": bool,
    "binary_data_output": bool,
}
_OUTPUT_PARAMETERS: dict[str, Any] = {"binary_data": bool}
_Parameters = dict[str, str | int | float | bool]


class _Input(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[_Dimension]
    parameters: _Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: _Parameters = {}


class _InferRequest(msgspec.Struct, omit_defaults=True):
    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1)]
    id: str | None = None
    parameters: _Parameters = {}
    outputs: list[_Output] = []


_decoder = msgspec.json.Decoder(_InferRequest)
_generate_decoder = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()
_REMEMBERED = 1024  # bytes of JSON, at most


class Checked(NamedTuple):
    """A body that may be forwarded, uncompressed.

    Attributes:
        body: all of it, or its JSON part where only that was given.
        header_length: bytes of JSON before the binary tensors, None when all is JSON.
        batch_size: first dimension of the first input, None when unknown.
        priority, timeout_us: Triton's request parameters, 0 where they are not set.
        in_sequence: it is one of a sequence, whose state the model keeps.
    """

    body: bytes
    header_length: int | None = None
    batch_size: int | None = None
    priority: int = 0
    timeout_us: int = 0
    in_sequence: bool = False


def check_infer_body(
    body: bytes,
    *,
    header_length: str | None,
    encoding: str | None,
    limit: int,
    shared_memory: bool = False,
) -> Checked:
    """Check an infer request.

    Args:
        header_length: value of Inference-Header-Content-Length.
        encoding: value of Content-Encoding.
        limit: the most bytes that the body may have once decompressed.
        shared_memory: tensors may lie in shared memory.

    Raises:
        InvalidInput: naming what is wrong.
        NotOffered: it wants shared memory or classification.
        UnsupportedMedia: its compression is unknown.
        BodyTooLarge: it decompresses to more than `limit` bytes.
    """
    plain = decompress(body, encoding, limit)
    if header_length is None:
        return check_infer_json(plain, None, shared_memory=shared_memory)
    length = json_length(header_length, len(plain))
    if length == 0:  # "raw binary request": no JSON at all, the shape is the model's own
        return Checked(plain, 0)
    binary = memoryview(plain)[length:]
    check = _checked_before if length <= _REMEMBERED else check_infer_json
    checked = check(plain[:length], len(binary), shared_memory=shared_memory)
    return checked._replace(body=b"".join((checked.body, binary)))


def check_infer_json(
    json_part: bytes, binary_bytes: int | None, *, shared_memory: bool = False
) -> Checked:
    """Check the JSON part of an infer request, `binary_bytes` of tensors behind it (None: no such).

    Raises:
        InvalidInput, NotOffered: as `check_infer_body`.
    """
    request = _decoded(_decoder, json_part, "infer")
    _check_inputs(request.inputs, binary_bytes, shared_memory=shared_memory)
    _check_parameters("the request", request.parameters, _REQUEST_PARAMETERS)
    for output in request.outputs:
        _check_output(output, shared_memory=shared_memory)
    encoded = _encoder.encode(request)
    parameters: dict[str, Any] = request.parameters
    return Checked(
        encoded,
        None if binary_bytes is None else len(encoded),
        request.inputs[0].shape[0] if request.inputs[0].shape else None,
        priority=parameters.get("priority", 0),
        timeout_us=parameters.get("timeout", 0),
        in_sequence=bool(parameters.get("sequence_id")),
    )


# Where the tensors are binary, a client's JSON says the same again and again.
_checked_before = functools.lru_cache(maxsize=1024)(check_infer_json)


def check_generate_body(body: bytes, *, encoding: str | None, limit: int) -> Checked:
    """Check a request of Triton's generate extension: inputs and parameters by name.

    Which of them are inputs is for Triton to know, and so are their types.

    Raises:
        InvalidInput, UnsupportedMedia, BodyTooLarge: as `check_infer_body`.
    """
    request = _decoded(_generate_decoder, decompress(body, encoding, limit), "generate")
    own = request.get("parameters")
    terms = {**request, **(own if isinstance(own, dict) else {})}
    known = {name: terms[name] for name in _REQUEST_PARAMETERS if name in terms}
    _check_parameters("the request", known, _REQUEST_PARAMETERS)
    for name, value in request.items():
        _check_generate_field(name, value)
    return Checked(
        _encoder.encode(request),
        priority=known.get("priority", 0),
        timeout_us=known.get("timeout", 0),
        in_sequence=bool(known.get("sequence_id")),
    )


def _check_generate_field(name: str, value: Any) -> None:
    if name == "parameters" and isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(item, str | int | float | bool):
                raise InvalidInput(
                    f"Parameter {key!r} must be text, a number or a bool.",
                    field=f"parameters.{key}",
                )
    elif isinstance(value, list):
        if not value or not all(isinstance(item, str | int | float | bool) for item in value):
            raise InvalidInput(
                f"Field {name!r} must be a list of text, numbers or bools, and not empty.",
                field=name,
            )
    elif value is None or isinstance(value, dict):
        raise InvalidInput(
            f"Field {name!r} must be text, a number, a bool or a list of them.", field=name
        )


def check_answer(json_part: bytes) -> None:
    """Check that the JSON of an answer is JSON: Triton writes NaN and Infinity as such.

    Raises:
        UnwritableAnswer: it holds one of them.
    """
    if b"NaN" not in json_part and b"Inf" not in json_part:
        return
    try:
        msgspec.json.decode(json_part)
    except msgspec.DecodeError:
        raise UnwritableAnswer from None


def decompress(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The plain body of a request with `Content-Encoding: gzip` or `deflate`.

    Raises:
        InvalidInput, UnsupportedMedia, BodyTooLarge: as `check_infer_body`.
    """
    stream = _inflater(encoding)
    if stream is None:
        return body
    plain = _inflated(stream, body, limit + 1, encoding)
    if len(plain) > limit:
        raise BodyTooLarge(limit)
    if not stream.eof:
        raise InvalidInput(f"The {encoding} body is cut off.")
    return plain


def decompress_begin(body: bytes, encoding: str | None, size: int) -> bytes:
    """The first `size` bytes of a body that may be compressed; the rest stays as it is.

    Raises:
        InvalidInput, UnsupportedMedia: as `check_infer_body`.
    """
    stream = _inflater(encoding) if size else None
    return body[:size] if stream is None else _inflated(stream, body, size, encoding)


def _inflater(encoding: str | None) -> zlib._Decompress | None:
    if encoding is None or encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMedia(f"Content-Encoding {encoding!r} is unknown; use gzip or deflate.")
    # 32: zlib finds out by itself whether it is gzip or zlib framing (zlib's inflateInit2).
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)


def _inflated(stream: zlib._Decompress, body: bytes, most: int, encoding: str | None) -> bytes:
    try:
        return stream.decompress(body, most)
    except zlib.error as error:
        raise InvalidInput(f"The body is not valid {encoding}: {error}.") from None


def json_length(text: str, available: int) -> int:
    """Value of Inference-Header-Content-Length, for a body of `available` bytes.

    Raises:
        InvalidInput: it is not a number of so many bytes.
    """
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > available:
        raise InvalidInput(
            f"Inference-Header-Content-Length must be a number of bytes up to {available}, "
            f"got {text[:40]!r}."
        )
    return int(text)


def _decoded(decoder: msgspec.json.Decoder[T], json_part: bytes, call: str) -> T:
    try:
        return decoder.decode(json_part)
    except RecursionError:
        raise InvalidInput("The JSON is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The {call} request is not valid: {error}") from None


def _check_parameters(owner: str, given: _Parameters, known: dict[str, Any]) -> None:
    for name, value in given.items():
        try:
            msgspec.convert(value, known.get(name, Any))
        except msgspec.ValidationError as error:
            raise InvalidInput(f"Parameter {name!r} of {owner}: {error}.") from None


def _check_output(output: _Output, *, shared_memory: bool) -> None:
    owner = f"Output {output.name!r}"
    _check_parameters(f"output {output.name!r}", output.parameters, _OUTPUT_PARAMETERS)
    refuse_classification(output.parameters)
    if _wants_shared_memory(owner, output.parameters, offered=shared_memory):
        _check_region(owner, output.parameters)


def _check_inputs(inputs: list[_Input], binary_bytes: int | None, *, shared_memory: bool) -> None:
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise InvalidInput("Two inputs have the same name.")
    binary = binary_bytes is not None
    claimed = sum(_check_input(t, binary=binary, shared_memory=shared_memory) for t in inputs)
    if binary_bytes is not None and claimed != binary_bytes:
        raise InvalidInput(
            f"The inputs claim {claimed} bytes of binary data, the request carries {binary_bytes}."
        )


def _check_input(tensor: _Input, *, binary: bool, shared_memory: bool) -> int:
    """Check one input; returns the bytes of binary data it claims."""
    if tensor.datatype not in _SIZES and tensor.datatype != "BYTES":
        raise _wrong(tensor, f"has the unknown datatype {tensor.datatype!r}")
    check_shape(tensor.shape)
    expected = math.prod(tensor.shape)
    has_data = bool(memoryview(tensor.data))
    owner, size = f"Input {tensor.name!r}", tensor.parameters.get("binary_data_size")
    if _wants_shared_memory(owner, tensor.parameters, offered=shared_memory):
        if has_data or size is not None:
            raise _wrong(tensor, "is in shared memory and has data as well")
        _check_binary_size(tensor, expected, _check_region(owner, tensor.parameters))
        return 0
    if size is None:
        _check_json_data(tensor, expected, has_data=has_data)
        return 0
    if not binary or has_data:
        raise _wrong(tensor, "names a binary_data_size but comes as JSON")
    return _check_binary_size(tensor, expected, size)


def _wants_shared_memory(owner: str, parameters: _Parameters, *, offered: bool) -> bool:
    wants = any(name.startswith("shared_memory") for name in parameters)
    if wants and not offered:
        raise NotOffered(f"{owner}: {SHARED_MEMORY_OFF}")
    return wants


def _check_region(owner: str, parameters: _Parameters) -> Any:
    """Check where in shared memory a tensor is; returns its size in bytes."""
    kinds: dict[str, Any] = {
        "shared_memory_region": str,
        "shared_memory_byte_size": _Unsigned,
        "shared_memory_offset": _Unsigned,
    }
    _check_parameters(owner[0].lower() + owner[1:], parameters, kinds)
    for name in ("shared_memory_region", "shared_memory_byte_size"):
        if name not in parameters:
            raise InvalidInput(f"{owner} has no parameter {name!r}.", field=name)
    return parameters["shared_memory_byte_size"]


def _check_json_data(tensor: _Input, expected: int, *, has_data: bool) -> None:
    if not has_data:
        raise _wrong(tensor, "has no data")
    if tensor.datatype not in _ELEMENTS:
        raise _wrong(tensor, f"is {tensor.datatype}, which has no JSON form; send it as binary")
    count = _count_elements(tensor)
    if count != expected:
        raise _wrong(tensor, f"has {count} elements, its shape {tensor.shape} wants {expected}")


def _check_binary_size(tensor: _Input, expected: int, size: Any) -> int:
    if type(size) is not int or size < 0:
        raise _wrong(tensor, "has a binary_data_size that is not a number of bytes")
    element = _SIZES.get(tensor.datatype)
    # Each BYTES element begins with its length in 4 bytes.
    fits = size == expected * element if element else size >= expected * 4
    if not fits:
        raise _wrong(tensor, f"has {size} bytes, which does not fit its shape {tensor.shape}")
    return size


def _count_elements(tensor: _Input) -> int:
    elements = _ELEMENTS[tensor.datatype]
    try:
        return len(msgspec.json.decode(tensor.data, type=elements))
    except RecursionError:
        raise _wrong(tensor, "is nested too deeply") from None
    except msgspec.ValidationError as error:
        flat = _flatten(msgspec.json.decode(tensor.data))
        if flat is None:
            raise _wrong(tensor, f"has wrong data: {error}") from None
    except msgspec.DecodeError as error:
        raise _wrong(tensor, f"has wrong data: {error}") from None
    try:
        return len(msgspec.convert(flat, elements))
    except msgspec.ValidationError as error:
        raise _wrong(tensor, f"has wrong data: {error}") from None


def _flatten(value: Any) -> list[Any] | None:
    """The leaves of a list of lists in no particular order, None when there are no lists in it."""
    if not isinstance(value, list) or not any(isinstance(item, list) for item in value):
        return None
    leaves: list[Any] = []
    pending = [value]
    while pending:
        for item in pending.pop():
            (pending if isinstance(item, list) else leaves).append(item)
    return leaves


def _wrong(tensor: _Input, what: str) -> InvalidInput:
    return InvalidInput(f"Input {tensor.name!r} {what}.")
