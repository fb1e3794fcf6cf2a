"""Checks of the tensors of a v2 infer request: their shapes against the data that came with them.

Data is JSON, binary behind the JSON part, or in shared memory, as a tensor's parameters say.
Protocol: KServe v2 REST with Triton's binary tensor data and system shared memory extensions.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from controlplane.errors import InvalidInput
from controlplane.gateway.errors import NotOffered
from controlplane.gateway.v2 import SHARED_MEMORY_OFF, check_shape, refuse_classification

Unsigned = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Parameters = dict[str, str | int | float | bool]
_Dimension = Annotated[int, msgspec.Meta(ge=0)]
_OUTPUT_PARAMETERS: dict[str, Any] = {"binary_data": bool}
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


class Input(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[_Dimension]
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class Output(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: Parameters = {}


def check_inputs(inputs: list[Input], binary_bytes: int | None, *, shared_memory: bool) -> None:
    """Check the inputs of a request that carries `binary_bytes` of tensors behind its JSON.

    Args:
        binary_bytes: None for a request that is JSON alone.
        shared_memory: tensors may lie in shared memory.

    Raises:
        InvalidInput, NotOffered.
    """
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise InvalidInput("Two inputs have the same name.")
    binary = binary_bytes is not None
    claimed = sum(_check_input(t, binary=binary, shared_memory=shared_memory) for t in inputs)
    if binary_bytes is not None and claimed != binary_bytes:
        raise InvalidInput(
            f"The inputs claim {claimed} bytes of binary data, the request carries {binary_bytes}."
        )


def _check_input(tensor: Input, *, binary: bool, shared_memory: bool) -> int:
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


def check_output(output: Output, *, shared_memory: bool) -> None:
    """Check how an output is asked for.

    Raises:
        InvalidInput, NotOffered.
    """
    owner = f"Output {output.name!r}"
    check_parameters(f"output {output.name!r}", output.parameters, _OUTPUT_PARAMETERS)
    refuse_classification(output.parameters)
    if _wants_shared_memory(owner, output.parameters, offered=shared_memory):
        _check_region(owner, output.parameters)


def check_parameters(owner: str, given: Parameters, known: dict[str, Any]) -> None:
    """Check parameters that mean something to Triton, whose types are `known`.

    Raises:
        InvalidInput: naming the parameter and its owner.
    """
    for name, value in given.items():
        try:
            msgspec.convert(value, known.get(name, Any))
        except msgspec.ValidationError as error:
            raise InvalidInput(f"Parameter {name!r} of {owner}: {error}.") from None


def _wants_shared_memory(owner: str, parameters: Parameters, *, offered: bool) -> bool:
    wants = any(name.startswith("shared_memory") for name in parameters)
    if wants and not offered:
        raise NotOffered(f"{owner}: {SHARED_MEMORY_OFF}")
    return wants


def _check_region(owner: str, parameters: Parameters) -> Any:
    """Check where in shared memory a tensor is; returns its size in bytes."""
    kinds: dict[str, Any] = {
        "shared_memory_region": str,
        "shared_memory_byte_size": Unsigned,
        "shared_memory_offset": Unsigned,
    }
    check_parameters(owner[0].lower() + owner[1:], parameters, kinds)
    for name in ("shared_memory_region", "shared_memory_byte_size"):
        if name not in parameters:
            raise InvalidInput(f"{owner} has no parameter {name!r}.", field=name)
    return parameters["shared_memory_byte_size"]


def _check_json_data(tensor: Input, expected: int, *, has_data: bool) -> None:
    if not has_data:
        raise _wrong(tensor, "has no data")
    if tensor.datatype not in _ELEMENTS:
        raise _wrong(tensor, f"is {tensor.datatype}, which has no JSON form; send it as binary")
    count = _count_elements(tensor)
    if count != expected:
        raise _wrong(tensor, f"has {count} elements, its shape {tensor.shape} wants {expected}")


def _check_binary_size(tensor: Input, expected: int, size: Any) -> int:
    if type(size) is not int or size < 0:
        raise _wrong(tensor, "has a binary_data_size that is not a number of bytes")
    element = _SIZES.get(tensor.datatype)
    # Each BYTES element begins with its length in 4 bytes.
    fits = size == expected * element if element else size >= expected * 4
    if not fits:
        raise _wrong(tensor, f"has {size} bytes, which does not fit its shape {tensor.shape}")
    return size


def _count_elements(tensor: Input) -> int:
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


def _wrong(tensor: Input, what: str) -> InvalidInput:
    return InvalidInput(f"Input {tensor.name!r} {what}.")
