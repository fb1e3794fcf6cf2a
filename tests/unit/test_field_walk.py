"""field_walk.py against `wire.fields`, which reads whole messages, however the bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway import wire
from controlplane.gateway.field_walk import FieldWalk

ENTERED = 2
SKIPPED = 9
pieces = st.lists(st.integers(0, 10_000), max_size=8)


class Record(FieldWalk):
    """Notes what it walks over, and asks for all values but one field's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def _outer(self, number: int, start: int, end: int) -> bool:
        if number == ENTERED:
            self.seen.append("into")
            return True
        self.seen.append((number, number == SKIPPED or self._value(start, end)))
        return False

    def _inner(self, number: int, start: int, end: int) -> None:
        self.seen.append(("inner", number, number == SKIPPED or self._value(start, end)))

    def _inner_number(self, number: int, value: int) -> None:
        self.seen.append(("inner", number, value))

    def _leave_inner(self) -> None:
        self.seen.append("out of")


def walked(message: bytes, cuts: list[int]) -> Record:
    walk, at = Record(), 0
    for cut in [*sorted(cut % (len(message) + 1) for cut in cuts), len(message)]:
        walk.feed(message[at:cut])
        at = cut
    return walk


def outcome(message: bytes, cuts: list[int]) -> object:
    try:
        walk = walked(message, cuts)
    except wire.MalformedMessage as error:
        return str(error)
    return walk.seen, walk.is_cut_off


def read_whole(message: bytes) -> list[object]:
    """What `Record` is to have seen, read by `wire.fields`."""
    seen: list[object] = []
    for field in wire.fields(message):
        value = message[field.start : field.end]
        if field.wire_type == wire.LENGTH and field.number == ENTERED:
            seen.append("into")
            seen += [("inner", *item) for item in values(value, numbers=True)]
            seen += ["out of"] if value else []
        elif field.wire_type == wire.LENGTH:
            seen.append((field.number, field.number == SKIPPED or value))
    return seen


def values(message: bytes, *, numbers: bool):
    for field in wire.fields(message):
        value = message[field.start : field.end]
        if field.wire_type == wire.LENGTH:
            yield field.number, field.number == SKIPPED or value
        elif field.wire_type == wire.VARINT and numbers:
            yield field.number, wire.decoded_varint(value, 0)[0]


def tag(number: int, wire_type: int) -> bytes:
    return wire.varint(number << 3 | wire_type)


numbers = st.sampled_from([1, 2, 3, SKIPPED, 15, 16, 2000])
small_fields = (
    st.builds(wire.bytes_field, numbers, st.binary(max_size=200))
    | st.builds(lambda n, v: tag(n, 0) + wire.varint(v), numbers, st.integers(0, 2**64 - 1))
    | st.builds(lambda n, v: tag(n, 1) + v, numbers, st.binary(min_size=8, max_size=8))
    | st.builds(lambda n, v: tag(n, 5) + v, numbers, st.binary(min_size=4, max_size=4))
)
inner_messages = st.lists(small_fields, max_size=6).map(b"".join)
outer_fields = st.one_of(
    st.builds(wire.bytes_field, numbers.filter(lambda n: n != ENTERED), st.binary(max_size=200)),
    st.builds(wire.bytes_field, st.just(ENTERED), inner_messages),
    st.builds(lambda n, v: tag(n, 0) + wire.varint(v), numbers, st.integers(0, 2**64 - 1)),
)
messages = st.lists(outer_fields, max_size=8).map(b"".join)


@given(messages, pieces)
def test_every_field_is_seen_once_however_the_message_is_cut(message, cuts):
    walk = walked(message, cuts)
    assert walk.seen == read_whole(message)
    assert not walk.is_cut_off


@given(st.binary(max_size=80) | messages, st.integers(0, 10_000), pieces)
def test_cuts_change_nothing_of_what_is_read_or_refused(message, end, cuts):
    message = message[: end % (len(message) + 1)]
    assert outcome(message, cuts) == outcome(message, [])


@given(messages, st.integers(1, 10_000))
def test_a_message_that_ends_within_a_field_is_known(message, back):
    ends = {field.end for field in wire.fields(message)} | {0}
    kept = message[: max(len(message) - back, 0)]
    assert walked(kept, []).is_cut_off == (len(kept) not in ends)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x02\x00", "impossible number"),
        (b"\x0b\x0c", "Triton's messages do not have"),  # a group
        (b"\xff" * 11, "too long"),
        (wire.bytes_field(ENTERED, b"\x0a\x05ab") + b"cde", "longer than what it is in"),
        (wire.bytes_field(ENTERED, b"\x08") + b"\x01", "longer than what it is in"),
    ],
)
def test_malformed_messages_say_how(message, reason):
    with pytest.raises(wire.MalformedMessage, match=reason):
        walked(message, [])


def test_what_nobody_asks_for_is_not_held():
    walk = Record()
    walk.feed(tag(SKIPPED, 2) + wire.varint(10**9) + b"x")
    for _ in range(3):
        walk.feed(bytes(1000))
        assert walk._rest == b""
    assert walk.is_cut_off
