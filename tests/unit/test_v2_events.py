"""Events of a stream: whatever pieces they come in, what is JSON passes as it is."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.v2_events import checked_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOOD = b'data: {"text_output":"NaN is a word, Infinity too","score":1.5}\n\n'
BAD = (b'data: {"score":NaN}\n\n', b'data: {"a":[1,-Infinity]}\n\n', b'data: {"a":Infinity}\n\n')
PLAIN = b'data: {"text_output":"hello"}\n\n'
events = st.lists(st.sampled_from([GOOD, PLAIN, *BAD]), max_size=8)


async def passed(chunks: list[bytes]) -> tuple[list[bytes], list[str]]:
    async def coming() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    refused: list[str] = []
    return [chunk async for chunk in checked_events(coming(), refused.append)], refused


def cut(content: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    return [content[i:j] for i, j in itertools.pairwise(at)]


@given(events, st.lists(st.integers(0, 10_000), max_size=10))
async def test_only_what_is_no_json_is_replaced(sent: list[bytes], places: list[int]) -> None:
    chunks, refused = await passed(cut(b"".join(sent), places))
    got = b"".join(chunks).split(b"\n\n")[:-1]
    assert len(got) == len(sent)
    for event, was in zip(got, sent, strict=True):
        if was in BAD:
            assert "NaN or Infinity" in json.loads(event.removeprefix(b"data: "))["error"]
        else:
            assert event + b"\n\n" == was
    assert refused == ["NOT_REPRESENTABLE"] * sum(event in BAD for event in sent)
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)


async def test_a_stream_that_breaks_off_is_passed_on_to_its_end() -> None:
    assert await passed([PLAIN + b'data: {"a":', b"1"]) == ([PLAIN, b'data: {"a":1'], [])


async def test_an_event_without_an_end_is_not_held_for_ever() -> None:
    piece = b"x" * 2**20
    chunks, _ = await passed([piece] * 20)
    assert b"".join(chunks) == piece * 20
    assert len(chunks) == 2
