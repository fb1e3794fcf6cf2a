"""What the gateway must know of a ModelInferRequest, read while its bytes pass.

Tensors can be hundreds of megabytes: they are skipped, never copied, and the message need not be
whole. Fields may come in any order and be cut anywhere. Protocol: KServe's `grpc_service.proto`;
ModelInferRequest has model_name 1, model_version 2, parameters 4, inputs 5, outputs 6 and
raw_input_contents 7; an input has its shape in 3, an output its parameters in 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput
from controlplane.gateway import v2
from controlplane.gateway.wire import MalformedMessage, Names, decoded_varint, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME, _VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 1, 2, 3, 4, 5, 6, 7
_RAW_TAG = _RAW << 3 | 2
_SHAPE = 3
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_NAME = 4096
_MAX_OUTPUT = 64 * 1024
_MAX_SHAPE = 1024  # packed; 32 dimensions take 320 bytes at most
_MAX_PARAMETER = 1024  # larger ones are none of those that are read
_CLASSIFICATION = v2.CLASSIFICATION.encode()
_64_BITS = 2**64 - 1


class _Cut(Exception):
    """The bytes end within a field that is to be read."""


class InferScan:
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
        "_at",
        "_base",
        "_data",
        "_name",
        "_rest",
        "_shape",
        "_skip",
        "_tensor_end",
        "_version",
        "has_id",
        "head_size",
        "in_sequence",
        "priority",
        "settled",
        "timeout_us",
    )

    def __init__(self) -> None:
        self._name = self._version = ""
        self.priority = self.timeout_us = 0
        self.in_sequence = self.settled = self.has_id = False
        self.head_size = 0
        self._data = self._rest = b""
        self._base = self._at = self._skip = 0  # place of `_data` in the message, place in `_data`
        self._tensor_end = 0  # where the input that is being read ends; 0 outside of one
        self._shape: list[int] = []

    @property
    def names(self) -> Names:
        return Names(self._name, self._version)

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            InvalidInput: it is no protobuf message, or a shape is impossible.
            NotOffered: it asks for classification.
        """
        if self._skip >= len(data):
            self._skip -= len(data)
            self._base += len(data)
            return
        self._data, self._at = (self._rest + data if self._rest else data), self._skip
        self._skip, self._rest = 0, b""
        try:
            self._read()
        except MalformedMessage as error:
            raise _malformed(error) from None

    def finish(self) -> None:
        """Note that the message is over.

        Raises:
            InvalidInput: it ended within a field.
        """
        if self._skip or self._rest or self._tensor_end:
            raise _malformed("the message is cut off")

    def _read(self) -> None:
        data, size = self._data, len(self._data)
        while self._at < size:
            start = self._at
            try:
                self._field()
            except _Cut:
                self._rest = data[start:]
                self._base += start
                return
            if self._tensor_end:
                self._end_tensor_at(self._base + self._at)
        self._skip = self._at - size
        self._base += size

    def _field(self) -> None:
        """Read or skip one field; `_at` is changed only when that succeeded."""
        tag, at = self._number(self._at)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise MalformedMessage("a field has an impossible number")
        if number >= _INPUTS and not self._tensor_end and self._name:
            self.settled = True
        if wire_type == _LENGTH:
            length, at = self._number(at)
            self._sized(number, at, at + length)
        elif wire_type == _VARINT:
            value, self._at = self._number(at)
            if self._tensor_end and number == _SHAPE:
                self._shape.append(value)
        elif wire_type in (_FIXED64, _FIXED32):
            self._at = at + (8 if wire_type == _FIXED64 else 4)
        else:
            raise MalformedMessage("a field has a type that Triton's messages do not have")

    def _number(self, at: int) -> tuple[int, int]:
        data = self._data
        if at >= len(data):
            raise _Cut
        value = data[at]
        at += 1
        if value < 0x80:
            return value, at
        value &= 0x7F
        for shift in range(7, 70, 7):
            if at >= len(data):
                raise _Cut
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _64_BITS, at
        raise MalformedMessage("a number is too long")

    def _sized(self, number: int, start: int, end: int) -> None:
        if self._tensor_end:
            if number == _SHAPE:
                self._packed_shape(start, end)
        elif number == _INPUTS and end > start:
            self._tensor_end, self._shape = self._base + end, []
            end = start  # into it
        elif number == _NAME:
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
        self._at = end

    def _end_tensor_at(self, place: int) -> None:
        if place > self._tensor_end:
            raise MalformedMessage("an input is longer than it says")
        if place == self._tensor_end:
            self._tensor_end = 0
            v2.check_shape(self._shape)

    def _value(self, start: int, end: int) -> bytes:
        if end > len(self._data):
            raise _Cut
        return self._data[start:end]

    def _text(self, start: int, end: int) -> str:
        if end - start > _MAX_NAME:
            raise MalformedMessage("a model name or version is too long")
        try:
            return self._value(start, end).decode()
        except UnicodeDecodeError:
            raise MalformedMessage("a model name or version is not UTF-8") from None

    def _packed_shape(self, start: int, end: int) -> None:
        if end - start > _MAX_SHAPE:
            raise MalformedMessage("the shape of an input is too long")
        self._value(start, end)  # all of it must be here
        sizes = []
        while start < end:
            size, start = self._number(start)
            sizes.append(size)
        if start > end:
            raise MalformedMessage("the shape of an input is cut off")
        self._shape += sizes

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
        elif field.number == 2 and field.wire_type == _LENGTH:
            number = next(_numbers(value), 0)
    return key, number


def _numbers(parameter: bytes) -> Iterator[int]:
    for field in fields(parameter):
        if field.number in (2, 5) and field.wire_type == _VARINT:
            value = 0
            for place, byte in enumerate(parameter[field.start : field.end]):
                value |= (byte & 0x7F) << 7 * place
            value &= _64_BITS
            yield 0 if value >> 63 else value  # a negative one says nothing


def _values(message: bytes, number: int) -> list[bytes]:
    return [
        message[f.start : f.end]
        for f in fields(message)
        if f.number == number and f.wire_type == _LENGTH
    ]


def _malformed(why: object) -> InvalidInput:
    return InvalidInput(f"The request is not a protobuf message: {why}.")
