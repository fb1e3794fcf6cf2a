"""Reading and changing two fields of a protobuf message without decoding it.

All of `inference.GRPCInferenceService`'s per-model requests carry the model's name as field 1 and
its version as field 2. Tensors can be hundreds of megabytes, so they are skipped, never copied.
Protocol: protobuf's encoding specification, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

Buffer = bytes | memoryview

MODEL_NAME = 1
MODEL_VERSION = 2

VARINT, FIXED64, LENGTH, _START_GROUP, _END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5
_64_BITS = 2**64 - 1
_MAX_TAG = 2**32 - 1
_MAX_GROUP_DEPTH = 100


class MalformedMessage(ValueError):
    """The bytes are not a protobuf message."""


class CutOff(MalformedMessage):
    """The bytes end within a field: the rest may yet come (`field_walk.py`)."""

    def __init__(self) -> None:
        super().__init__("the message is cut off")


class Names(NamedTuple):
    """What a request calls the model; empty text where the field is absent."""

    model_name: str
    model_version: str


class Field(NamedTuple):
    """One top-level field: its number, wire type and the place of its value in the message."""

    number: int
    wire_type: int
    start: int
    end: int


def read_names(message: bytes) -> Names:
    """Model name and version of a request, as a protobuf parser would read them.

    Fields may come in any order; of repeated ones the last counts; unknown ones are skipped, and
    so are fields 1 and 2 with another wire type than text has.

    Raises:
        MalformedMessage: the bytes break protobuf's encoding, or a name is not UTF-8.
    """
    found = {MODEL_NAME: "", MODEL_VERSION: ""}
    for field in fields(message):
        if field.wire_type == LENGTH and field.number in found:
            found[field.number] = _text(message[field.start : field.end])
    return Names(found[MODEL_NAME], found[MODEL_VERSION])


@lru_cache(maxsize=1024)
def names_tail(old: Names, new: Names) -> bytes:
    """What to append to a message so that it has another model name and version.

    Of a repeated singular field every parser takes the last.

    Args:
        old: what the message has; an unchanged name costs nothing.
    """
    tail = b""
    if new.model_name != old.model_name:
        tail += text_field(MODEL_NAME, new.model_name)
    if new.model_version != old.model_version:
        tail += text_field(MODEL_VERSION, new.model_version)
    return tail


def text_field(number: int, text: str) -> bytes:
    """An encoded `string` field."""
    return bytes_field(number, text.encode())


def bytes_field(number: int, value: bytes) -> bytes:
    """An encoded `bytes` field, or a message within another."""
    return varint(number << 3 | LENGTH) + varint(len(value)) + value


def bool_field(number: int, *, value: bool) -> bytes:
    """An encoded `bool` field; false, being proto3's default, is not written."""
    return varint(number << 3) + b"\x01" if value else b""


def keep_texts(message: bytes, number: int, kept: Container[str]) -> bytes:
    """The message without those texts of a repeated `string` field that are not in `kept`."""
    out, at = [], 0
    for field in fields(message):
        text = message[field.start : field.end]
        if field.number != number or field.wire_type != LENGTH or _text(text) in kept:
            out.append(message[at : field.end])
        at = field.end
    return b"".join(out)


def varint(value: int) -> bytes:
    """A non-negative integer as base-128 varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(message: Buffer) -> Iterator[Field]:
    """The top-level fields in their order; a group counts as one field.

    Raises:
        MalformedMessage: where the encoding breaks.
    """
    at = 0
    try:
        while at < len(message):
            number, wire_type, at = _tag(message, at)
            start, end, after = _value(message, at, number, wire_type, depth=0)
            yield Field(number, wire_type, start, end)
            at = after
    except CutOff as error:  # all of it is here: nobody may wait for the rest
        raise MalformedMessage(str(error)) from None


def _tag(message: Buffer, at: int) -> tuple[int, int, int]:
    tag, at = decoded_varint(message, at)
    if tag > _MAX_TAG or tag >> 3 == 0:
        raise MalformedMessage("a field has an impossible number")
    return tag >> 3, tag & 7, at


def _value(
    message: Buffer, at: int, number: int, wire_type: int, depth: int
) -> tuple[int, int, int]:
    """Start and end of a field's value, and where the next field begins."""
    if wire_type == _START_GROUP:
        end, after = _group(message, at, number, depth + 1)
        return at, end, after
    start, end = at, at
    if wire_type == VARINT:
        end = decoded_varint(message, at)[1]
    elif wire_type == LENGTH:
        length, start = decoded_varint(message, at)
        end = start + length
    elif wire_type in (FIXED64, FIXED32):
        end = at + (8 if wire_type == FIXED64 else 4)
    else:
        raise MalformedMessage("a field has an impossible type")
    if end > len(message):
        raise CutOff
    return start, end, end


def _group(message: Buffer, at: int, number: int, depth: int) -> tuple[int, int]:
    """Where a group's content ends, and where the next field begins."""
    if depth > _MAX_GROUP_DEPTH:
        raise MalformedMessage("groups are nested too deeply")
    while at < len(message):
        end = at
        inner, wire_type, at = _tag(message, at)
        if wire_type == _END_GROUP:
            if inner != number:
                raise MalformedMessage("a group ends that has not begun")
            return end, at
        at = _value(message, at, inner, wire_type, depth)[2]
    raise CutOff


def decoded_varint(message: Buffer, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends.

    Raises:
        CutOff: the message ends before it.
        MalformedMessage: it is too long.
    """
    if at >= len(message):
        raise CutOff
    value = message[at]
    at += 1
    if value < 0x80:  # most are this short
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        if at >= len(message):
            raise CutOff
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _64_BITS, at
    raise MalformedMessage("a number is too long")


def packed_varints(value: Buffer) -> Iterator[int]:
    """The numbers of a packed repeated field.

    Raises:
        MalformedMessage: the last one is cut off, or one is too long.
    """
    at = 0
    try:
        while at < len(value):
            number, at = decoded_varint(value, at)
            yield number
    except CutOff:
        raise MalformedMessage("a list of numbers is cut off") from None


def _text(value: Buffer) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise MalformedMessage("a model name or version is not UTF-8") from None
