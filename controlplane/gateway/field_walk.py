"""Walking the fields of a protobuf message whose bytes arrive in pieces, cut anywhere.

Tensors can be hundreds of megabytes: what is not asked for is skipped, never copied, and the
message need not be whole. Groups, which none of Triton's messages has, are refused. For messages
that are there as a whole: `wire.fields`.
"""

from __future__ import annotations

import sys

from controlplane.gateway.wire import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    CutOff,
    MalformedMessage,
    decoded_varint,
)


class FieldWalk:
    """Walks one message, and the messages within it that `_outer` asks to be entered.

    What is made of the fields is a subclass's: of `_outer`, `_inner`, `_inner_number` and
    `_leave_inner`, it overrides what it needs. A field that is asked for with `_value` is held
    until all of it is here, so a subclass sets a limit first.
    """

    __slots__ = ("_at", "_base", "_data", "_inner_end", "_rest", "_skip")

    def __init__(self) -> None:
        self._data = self._rest = b""
        self._base = self._at = self._skip = 0  # place of `_data` in the message, place in `_data`
        self._inner_end = 0  # where the message ends that was entered; 0 outside of one

    @property
    def is_cut_off(self) -> bool:
        """True when the bytes so far end within a field."""
        return bool(self._skip or self._rest or self._inner_end)

    def feed(self, data: bytes) -> None:
        """Walk on."""
        if self._skip >= len(data):
            self._skip -= len(data)
            self._base += len(data)
            return
        if self._rest:
            data = self._rest + data
        self._data, self._at = data, self._skip
        self._skip, self._rest, size = 0, b"", len(data)
        try:
            while self._at < size:
                self._step(data)
                if self._inner_end and self._base + self._at >= self._inner_end:
                    self._end_inner()
        except CutOff:
            self._rest = data[self._at :]
            self._base += self._at
        except MalformedMessage as error:
            self._refuse(error)
        else:
            self._skip = self._at - size
            self._base += size

    def _outer(self, number: int, start: int, end: int) -> bool | None:
        """A field of the message, with the place of its value; returns True to enter it."""

    def _inner(self, number: int, start: int, end: int) -> None:
        """A field of the message that was entered."""

    def _inner_number(self, number: int, value: int) -> None:
        """A field of the message that was entered whose value is a number."""

    def _leave_inner(self) -> None:
        """The message that was entered is over."""

    def _refuse(self, error: MalformedMessage) -> None:
        """The message is none that Triton or its clients would send: raise, or note it."""
        raise error

    def _skip_rest(self) -> None:
        """Read no more of the message, however long it is."""
        self._skip = sys.maxsize

    def _value(self, start: int, end: int) -> bytes:
        """What is there, once it is; until then the field is met again with the next bytes."""
        if end > len(self._data):
            raise CutOff
        return self._data[start:end]

    def _step(self, data: bytes) -> None:
        """Read or skip one field; `_at` is changed only when that succeeded."""
        at = self._at
        tag = data[at]
        if tag < 0x80:  # those of all fields that are of use
            at += 1
        else:
            tag, at = decoded_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == LENGTH and number:
            length, at = decoded_varint(data, at)
            end = at + length
            if self._inner_end:
                self._inner(number, at, end)
            elif self._outer(number, at, end) and length:
                self._inner_end, end = self._base + end, at  # into it
            self._at = end
        else:
            self._at = self._after_other(number, wire_type, at)

    def _after_other(self, number: int, wire_type: int, at: int) -> int:
        """Where a field ends that does not say how long it is."""
        if not number:
            raise MalformedMessage("a field has an impossible number")
        if wire_type == VARINT:
            value, at = decoded_varint(self._data, at)
            if self._inner_end:
                self._inner_number(number, value)
            return at
        if wire_type in (FIXED64, FIXED32):
            return at + (8 if wire_type == FIXED64 else 4)
        raise MalformedMessage("a field has a type that Triton's messages do not have")

    def _end_inner(self) -> None:
        if self._base + self._at > self._inner_end:
            raise MalformedMessage("a field is longer than what it is in")
        self._inner_end = 0
        self._leave_inner()
