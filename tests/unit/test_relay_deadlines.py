"""One timer for all deadlines ends each call when it should, and none that has ended."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.grpc_relay.deadlines import Deadlines
from tests.virtual_time import in_virtual_time


class Call:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.ended: list[float] = []

    def time_is_up(self) -> None:
        self.ended.append(asyncio.get_running_loop().time())


# When a call begins, how long it may take, when its client is served (None: never), when it gets
# another deadline and which.
histories = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(0, 20),
        st.none() | st.integers(0, 20),
        st.none() | st.tuples(st.integers(0, 20), st.integers(0, 20)),
    ),
    max_size=12,
)


async def live(deadlines: Deadlines, history) -> tuple[Call, float | None]:
    """One call's life; returns it with the time at which it should have ended."""
    loop = asyncio.get_running_loop()
    began, allowed, served, change = history
    origin = loop.time()
    await asyncio.sleep(began)
    call = Call(origin + began + allowed)
    deadlines.add(call)
    steps = [(began + served, None)] if served is not None else []
    if change is not None:
        steps.append((began + change[0], change[1]))
    for when, more in sorted(steps, key=lambda step: step[0]):
        await asyncio.sleep(max(0.0, origin + when - loop.time()))
        if call.ended or call.deadline <= loop.time():
            break
        if more is None:
            deadlines.discard(call)
            return call, None
        call.deadline = loop.time() + more
        deadlines.add(call)
    return call, call.deadline


@given(histories)
def test_each_call_ends_at_its_deadline_and_only_once(given_histories):
    async def main():
        deadlines = Deadlines()
        lives = await asyncio.gather(*[live(deadlines, one) for one in given_histories])
        await asyncio.sleep(100)
        for call, expected in lives:
            assert call.ended == ([] if expected is None else [expected])
            assert call not in deadlines

    in_virtual_time(main())


def test_who_ends_may_end_others_and_begin_new_ones():
    async def main():
        deadlines = Deadlines()
        now = asyncio.get_running_loop().time()
        first, second, third = Call(now + 1), Call(now + 1), Call(now + 2)

        def end_first() -> None:
            deadlines.discard(second)
            deadlines.add(third)

        first.time_is_up = end_first  # type: ignore[method-assign]
        deadlines.add(first)
        deadlines.add(second)
        await asyncio.sleep(3)
        assert second.ended == []
        assert third.ended == [now + 2]

    in_virtual_time(main())


def test_after_the_close_nothing_ends():
    async def main():
        deadlines = Deadlines()
        call = Call(asyncio.get_running_loop().time() + 1)
        deadlines.add(call)
        deadlines.close()
        await asyncio.sleep(2)
        assert call.ended == []

    in_virtual_time(main())
