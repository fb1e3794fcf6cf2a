"""What must be known of the answers of a stream, read while their bytes pass.

Which model has answered, whether that was the last answer to its request, whether it is an error:
small fields, between tensors that are skipped, never copied. Fields may come in any order and be
cut anywhere. Protocol: `grpc_service.proto`; ModelStreamInferResponse has error_message 1 and
infer_response 2; ModelInferResponse has model_name 1, model_version 2, parameters 4, outputs 5 and
raw_output_contents 6. What Triton makes of them: docs/data-plane.md, "Streams of requests".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from controlplane.gateway.field_walk import FieldWalk
from controlplane.gateway.grpc_relay.message import PREFIX_SIZE
from controlplane.gateway.wire import LENGTH, VARINT, MalformedMessage, decoded_varint, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

_ERROR, _RESPONSE = 1, 2
_NAME, _VERSION, _PARAMETERS, _OUTPUTS, _CONTENTS = 1, 2, 4, 5, 6
_FINAL = b"triton_final_response"
_AS_TRITON_WRITES = {
    b"\n\x15" + _FINAL + b"\x12\x02\x08" + bytes((flag,)): flag == 1 for flag in (0, 1)
}
_MAX_NAME = 4096
_MAX_PARAMETER = 1024  # larger ones are none of those that are read
# Of an answer that has shown neither outputs nor an error yet; ids are the clients' own.
_MAX_HELD = 64 * 1024


class Answer(NamedTuple):
    """One answer.

    Attributes:
        key: Triton's name and version number of the model; None where it does not say.
        final: it is the last one to its request; None where the server does not say.
        failed: it is an error.
        readable: False for what could not be read; nothing else is known then.
    """

    key: tuple[str, int] | None = None
    final: bool | None = None
    failed: bool = False
    readable: bool = True


class AnswerReader:
    """Cuts a stream of answers into messages and reads them.

    Attributes:
        silences: requests were told to bring an empty last answer that their client has not asked
            for (`stream_messages.py`): such ones are kept back.
        between: what was passed on ends with a message.
    """

    __slots__ = ("_held", "_left", "_passed", "_prefix", "_scan", "_size", "silences")

    def __init__(self) -> None:
        self.silences = False
        self._prefix = b""
        self._left = self._size = 0  # bytes of the message that are still to come, and of all of it
        self._scan: _Scan | None = None
        self._held: list[bytes] = []
        self._passed = False  # some of the message

    @property
    def between(self) -> bool:
        return not self._passed

    def feed(self, data: bytes) -> Iterator[tuple[bytes, Answer | None]]:
        """Read on: pieces to be passed on, each with the answer that ends with it, if one does."""
        at, size = 0, len(data)
        while at < size:
            scan, began = self._scan, at
            if scan is None:
                at += min(PREFIX_SIZE - len(self._prefix), size - at)
                self._prefix += data[began:at]
                if len(self._prefix) < PREFIX_SIZE:
                    return
                scan, began = self._begin(), at
            at += min(self._left, size - at)
            part = data[began:at]
            self._left -= len(part)
            scan.feed(part)
            self._held.append(part)
            if not self._left:
                yield self._end(scan)
            elif self._passed or not self._may_be_silenced(scan):
                self._passed = True
                yield self._take(), None

    def _begin(self) -> _Scan:
        prefix, self._prefix = self._prefix, b""
        self._size = self._left = int.from_bytes(prefix[1:], "big")
        # Triton is not asked to compress answers of streams (`heads.py`).
        scan = self._scan = _Scan(readable=prefix[0] == 0)
        self._held.append(prefix)
        return scan

    def _end(self, scan: _Scan) -> tuple[bytes, Answer]:
        answer = scan.answer()
        if self._may_be_silenced(scan) and scan.of_server and answer.final:
            self._held.clear()
        self._scan, self._passed = None, False
        return self._take(), answer

    def _may_be_silenced(self, scan: _Scan) -> bool:
        return self.silences and scan.bare and self._size <= _MAX_HELD

    def _take(self) -> bytes:
        held, self._held = self._held, []
        return b"".join(held)


class _Scan(FieldWalk):
    """Reads one ModelStreamInferResponse."""

    __slots__ = ("_name", "_version", "empty", "failed", "final", "readable")

    def __init__(self, *, readable: bool) -> None:
        super().__init__()
        self.readable = readable
        self.failed = False
        self.empty = True  # neither outputs nor contents so far
        self.final: bool | None = None
        self._name = self._version = b""

    @property
    def of_server(self) -> bool:
        """True when Triton's frontend made it: it repeats the version as the request spelled it."""
        return self._version.startswith(b"0")

    @property
    def bare(self) -> bool:
        """True while nothing shows that it is an answer of the model or an error."""
        return (
            self.readable
            and self.empty
            and not self.failed
            and (not self._version or self.of_server)
        )

    def answer(self) -> Answer:
        """What was read, at the message's end."""
        if not self.readable or self.is_cut_off:
            return Answer(readable=False)
        name, version = self._name, self._version
        key = (name.decode("utf-8", "replace"), int(version)) if version.isdigit() else None
        return Answer(key, self.final, self.failed)

    def _refuse(self, error: MalformedMessage) -> None:
        self.readable = False
        self._skip_rest()

    def _outer(self, number: int, start: int, end: int) -> bool:
        if number == _ERROR:
            self.failed = end > start
        return number == _RESPONSE

    def _inner(self, number: int, start: int, end: int) -> None:
        if number in (_OUTPUTS, _CONTENTS):
            self.empty = False
        elif number == _NAME:
            self._name = self._text(start, end)
        elif number == _VERSION:
            self._version = self._text(start, end)
        elif number == _PARAMETERS and end - start <= _MAX_PARAMETER:
            entry = self._value(start, end)
            if entry in _AS_TRITON_WRITES:
                self.final = _AS_TRITON_WRITES[entry]
            elif _FINAL in entry:
                self._parameter(entry)

    def _parameter(self, entry: bytes) -> None:
        key, flag = b"", None
        for field in fields(entry):
            value = entry[field.start : field.end]
            if field.number == 1:
                key = value
            elif field.number == 2 and field.wire_type == LENGTH:
                flag = flag_of(value)
        if key == _FINAL:
            self.final = flag

    def _text(self, start: int, end: int) -> bytes:
        if end - start > _MAX_NAME:
            raise MalformedMessage("a name is too long")
        return self._value(start, end)


def flag_of(parameter: bytes) -> bool | None:
    """The value of an InferParameter that is a bool (field 1), else None.

    Raises:
        MalformedMessage: it is no protobuf message.
    """
    flag = None
    for field in fields(parameter):
        # A oneof: the last of its fields counts.
        is_flag = field.number == 1 and field.wire_type == VARINT
        flag = decoded_varint(parameter, field.start)[0] != 0 if is_flag else None
    return flag
