"""Streams whose process dies without anybody saying so."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from controlplane.inference import mortal
from controlplane.inference.mortal import while_alive
from controlplane.lifecycle import memory
from controlplane.triton.failures import StubUnhealthy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.fixture(autouse=True)
def _looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mortal, "LOOK_EVERY", 0.01)


async def pieces(count: int, closed: list[bool], *, then_silent: bool) -> AsyncGenerator[int, None]:
    try:
        for number in range(count):
            yield number
        if then_silent:
            await asyncio.sleep(60)
    finally:
        closed.append(True)


async def test_what_a_process_said_before_it_died_is_passed_on_and_then_its_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "alive", lambda _: False)
    closed: list[bool] = []
    responses = while_alive(pieces(3, closed, then_silent=True), 1)
    assert [await anext(responses) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StubUnhealthy, match="in the midst"):
        await anext(responses)
    assert closed == [True]  # Triton is told that nobody waits


async def test_a_silent_process_that_lives_is_waited_for() -> None:
    closed: list[bool] = []
    responses = while_alive(pieces(1, closed, then_silent=True), os.getpid())
    async with contextlib.aclosing(responses):
        assert await anext(responses) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(responses), 0.2)
    assert closed == [True]


async def test_a_whole_answer_is_passed_on_whatever_became_of_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "alive", lambda _: False)
    closed: list[bool] = []
    heard = [piece async for piece in while_alive(pieces(5, closed, then_silent=False), 1)]
    assert heard == [0, 1, 2, 3, 4]
