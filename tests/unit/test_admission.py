"""The gate in front of a model: a limit, an order, and no place lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import InferenceTimeout, QueueFull
from controlplane.lifecycle.admission import Gate


def soon(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_up_to_the_limit_nobody_waits() -> None:
    gate = Gate("org/m", running=2)
    assert gate.try_enter()
    assert gate.try_enter()
    assert not gate.try_enter()
    gate.leave()
    assert gate.try_enter()


async def test_a_newcomer_does_not_pass_those_who_wait() -> None:
    gate = Gate("org/m", running=1)
    assert gate.try_enter()
    waiting = asyncio.create_task(gate.enter(3, soon()))
    await settle()
    gate.leave()
    assert not gate.try_enter()
    await waiting


@given(priorities=st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_who_waits_is_admitted_by_priority_then_arrival(priorities: list[int]) -> None:
    async def history() -> list[int]:
        gate = Gate("org/m", running=1)
        assert gate.try_enter()
        admitted: list[int] = []

        async def request(number: int, priority: int) -> None:
            await gate.enter(priority, soon())
            admitted.append(number)
            gate.leave()

        tasks = []
        for number, priority in enumerate(priorities):
            tasks.append(asyncio.create_task(request(number, priority)))
            await settle()
        gate.leave()
        await asyncio.gather(*tasks)
        assert gate.try_enter()  # the one place is back
        return admitted

    expected = sorted(range(len(priorities)), key=lambda number: (priorities[number], number))
    assert asyncio.run(history()) == expected


async def test_beyond_its_length_the_queue_refuses() -> None:
    gate = Gate("org/m", running=1, waiting=1)
    assert gate.try_enter()
    waiting = asyncio.create_task(gate.enter(3, soon()))
    await settle()
    with pytest.raises(QueueFull) as caught:
        await gate.enter(1, soon())
    assert caught.value.retry_after
    gate.leave()
    await waiting


async def test_waiting_ends_at_the_deadline_and_leaves_the_queue() -> None:
    gate = Gate("org/m", running=1)
    assert gate.try_enter()
    with pytest.raises(InferenceTimeout):
        await gate.enter(3, soon(0.01))
    assert gate.waiting == 0
    gate.leave()
    assert gate.try_enter()


@pytest.mark.parametrize("admitted_first", [True, False])
async def test_a_cancelled_request_gives_its_place_on(admitted_first: bool) -> None:
    gate = Gate("org/m", running=1)
    assert gate.try_enter()
    leaver = asyncio.create_task(gate.enter(1, soon()))
    follower = asyncio.create_task(gate.enter(2, soon()))
    await settle()
    if admitted_first:
        gate.leave()
        leaver.cancel()
    else:
        leaver.cancel()
        gate.leave()
    await asyncio.gather(leaver, return_exceptions=True)
    await follower
    gate.leave()
    assert gate.try_enter()
    assert gate.waiting == 0
