"""What the gateway must know of a ModelInferRequest, read while its bytes pass.

The message need not be whole, and its tensors are skipped (`field_walk.py`). Fields may come in any
order. Protocol: KServe's `grpc_service.proto`;
ModelInferRequest has model_name 1, model_version 2, parameters 4, inputs 5, outputs 6 and
raw_input_contents 7; an input has its shape in 3, an output its parameters in 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput
from controlplane.gateway import v2
from controlplane.gateway.field_walk import FieldWalk
from controlplane.gateway.wire import (
    LENGTH,
    VARINT,
    MalformedMessage,
    Names,
    decoded_varint,
    fields,
    packed_varints,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME, _VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 1, 2, 3, 4, 5, 6, 7
_RAW_TAG = _RAW << 3 | LENGTH
_SHAPE = 3
_MAX_NAME = 4096
_MAX_OUTPUT = 64 * 1024
_MAX_SHAPE = 1024  # packed; 32 dimensions take 320 bytes at most
_MAX_PARAMETER = 1024  # larger ones are none of those that are read
_CLASSIFICATION = v2.CLASSIFICATION.encode()


class InferScan(FieldWalk):
    """Reads names, parameters and shapes; refuses what would end Triton's processes.

    Attributes:
        names: the model's name and version so far; of repeated fields the last counts, as for
            every protobuf parser.
        priority, timeout_us: Triton's request parameters, 0 where absent.
        in_sequence: the request is one of a sequence, whose state lives in the model.
        settled: the fields that come first in every known client's messages are over.
        head_size: bytes before the first raw tensor, 0 while none has come.
        has_id: the request has an id of its own.
    """

    __slots__ = (
        "_name",
        "_shape",
        "_version",
        "has_id",
        "head_size",
        "in_sequence",
        "priority",
        "settled",
        "timeout_us",
    )

    def __init__(self) -> None:
        super().__init__()
        self._name = self._version = ""
        self.priority = self.timeout_us = 0
        self.in_sequence = self.settled = self.has_id = False
        self.head_size = 0
        self._shape: list[int] = []

    @property
    def names(self) -> Names:
        return Names(self._name, self._version)

    def finish(self) -> None:
        """Note that the message is over.

        Raises:
            InvalidInput: it ended within a field.
        """
        if self.is_cut_off:
            raise _malformed("the message is cut off")

    def _outer(self, number: int, start: int, end: int) -> bool:
        if number >= _INPUTS and self._name:
            self.settled = True
        if number == _INPUTS:
            self._shape = []
            return True
        if number == _NAME:
            self._name = self._text(start, end)
        elif number == _VERSION:
            self._version = self._text(start, end)
        elif number == _PARAMETERS and end - start <= _MAX_PARAMETER:
            self._parameter(self._value(start, end))
        elif number == _OUTPUTS:
            self._output(start, end)
        elif number == _RAW:
            self.head_size = self.head_size or self._base + self._at
        elif number == _ID:
            self.has_id = True
        return False

    def _inner(self, number: int, start: int, end: int) -> None:
        if number == _SHAPE:
            if end - start > _MAX_SHAPE:
                raise MalformedMessage("the shape of an input is too long")
            self._shape += packed_varints(self._value(start, end))

    def _inner_number(self, number: int, value: int) -> None:
        if number == _SHAPE:
            self._shape.append(value)

    def _leave_inner(self) -> None:
        v2.check_shape(self._shape)

    def _refuse(self, error: MalformedMessage) -> None:
        raise _malformed(error) from None

    def _text(self, start: int, end: int) -> str:
        if end - start > _MAX_NAME:
            raise MalformedMessage("a model name or version is too long")
        try:
            return self._value(start, end).decode()
        except UnicodeDecodeError:
            raise MalformedMessage("a model name or version is not UTF-8") from None

    def _parameter(self, entry: bytes) -> None:
        if b"priority" in entry or b"timeout" in entry or b"sequence_id" in entry:
            key, value = _map_entry(entry)
            if key == b"priority":
                self.priority = value
            elif key == b"timeout":
                self.timeout_us = value
            elif key == b"sequence_id":
                self.in_sequence = True

    def _output(self, start: int, end: int) -> None:
        if end - start > _MAX_OUTPUT:
            raise MalformedMessage("the description of an output is too long")
        output = self._value(start, end)
        if _CLASSIFICATION in output:
            keys = [key for entry in _values(output, 2) for key in _values(entry, 1)]
            v2.refuse_classification({str(key, "utf-8", "replace") for key in keys})


class KnownHeads:
    """First bytes of requests that have been read before, and the names they carry.

    A client that asks a model again sends the same bytes again, up to the tensors' values. Fields
    of protobuf mean the same whatever follows them, so a head that was read and checked once need
    not be read again: finding it takes a twentieth of the time. Of few sizes: each is tried.
    """

    _MOST, _MOST_SIZES, _LARGEST = 256, 8, 2048

    def __init__(self) -> None:
        self._names: dict[bytes, Names] = {}
        self._sizes: set[int] = set()

    def find(self, message: bytes, start: int) -> Names | None:
        """The names in a message that begins at `start`, where its head is known."""
        for size in self._sizes:
            end = start + size
            names = self._names.get(message[start:end])
            if names is not None and _only_raw_tensors(message, end):
                return names
        return None

    def learn(self, message: bytes, start: int, scan: InferScan) -> None:
        """Remember the head of a whole message that `scan` has read.

        What asks for something special (a priority, a time, a sequence) is not remembered, nor what
        carries an id and so will hardly come again.
        """
        size = scan.head_size
        special = scan.priority or scan.timeout_us or scan.in_sequence or scan.has_id
        if special or not 0 < size <= self._LARGEST or not _only_raw_tensors(message, start + size):
            return
        if len(self._names) >= self._MOST or len(self._sizes | {size}) > self._MOST_SIZES:
            self._names.clear()
            self._sizes.clear()
        self._names[message[start : start + size]] = scan.names
        self._sizes.add(size)


def _only_raw_tensors(message: bytes, at: int) -> bool:
    """True when nothing but whole fields of `raw_input_contents` follows."""
    end = len(message)
    # Nearly all requests: one tensor, whose size takes a byte.
    if end - at >= 2 and message[at] == _RAW_TAG and message[at + 1] == end - at - 2 < 0x80:
        return True
    while at < end:
        if message[at] != _RAW_TAG:
            return False
        try:
            length, at = decoded_varint(message, at + 1)
        except MalformedMessage:
            return False
        at += length
    return at == end


def _map_entry(entry: bytes) -> tuple[bytes, int]:
    """Key of an entry of `parameters`, and its number (int64 2 or uint64 5), 0 for none."""
    key, number = b"", 0
    for field in fields(entry):
        value = entry[field.start : field.end]
        if field.number == 1:
            key = value
        elif field.number == 2 and field.wire_type == LENGTH:
            number = next(_numbers(value), 0)
    return key, number


def _numbers(parameter: bytes) -> Iterator[int]:
    for field in fields(parameter):
        if field.number in (2, 5) and field.wire_type == VARINT:
            value, _ = decoded_varint(parameter, field.start)
            yield 0 if value >> 63 else value  # a negative one says nothing


def _values(message: bytes, number: int) -> list[bytes]:
    return [
        message[f.start : f.end]
        for f in fields(message)
        if f.number == number and f.wire_type == LENGTH
    ]


def _malformed(why: object) -> InvalidInput:
    return InvalidInput(f"The request is not a protobuf message: {why}.")
