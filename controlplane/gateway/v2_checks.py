"""Checks of a v2 infer request over HTTP before Triton sees it.

The server trusts the shapes of JSON tensors: a body of some 150 bytes with an impossible one ends
its process, and most faults in JSON come back as status 500. So the JSON part is parsed here, its
shapes are held against the data that came with them (`v2_tensors.py`), and what was checked is
what is forwarded, encoded anew: a key given twice, of which we would check one and Triton read the
other, is gone.
Protocol: KServe v2 REST with Triton's binary tensor data extension.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from controlplane.errors import InvalidInput
from controlplane.gateway.errors import UnwritableAnswer
from controlplane.gateway.v2_compression import decompress
from controlplane.gateway.v2_tensors import (
    Input,
    Output,
    Parameters,
    Unsigned,
    check_inputs,
    check_output,
    check_parameters,
)

T = TypeVar("T")

# Parameters that mean something to Triton (its parameters, sequence and binary extensions); a
# wrong type would come back as status 500.
_REQUEST_PARAMETERS: dict[str, Any] = {
    "priority": Unsigned,
    "timeout": Unsigned,
    "sequence_id": Unsigned | str,
    "sequence_start": bool,
    "sequence_end": bool,
    "binary_data_output": bool,
}


class _InferRequest(msgspec.Struct, omit_defaults=True):
    inputs: Annotated[list[Input], msgspec.Meta(min_length=1)]
    id: str | None = None
    parameters: Parameters = {}
    outputs: list[Output] = []


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
    check_inputs(request.inputs, binary_bytes, shared_memory=shared_memory)
    check_parameters("the request", request.parameters, _REQUEST_PARAMETERS)
    for output in request.outputs:
        check_output(output, shared_memory=shared_memory)
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
    check_parameters("the request", known, _REQUEST_PARAMETERS)
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
