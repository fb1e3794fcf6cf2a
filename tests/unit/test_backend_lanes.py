"""Runs beside each other: every job once, as many at a time as there are lanes, no error lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engines import BatchCost
from backends.lanes import beside_others, cost_for, in_lanes

if TYPE_CHECKING:
    from collections.abc import Iterator

ENOUGH = 30.0


@given(st.lists(st.none() | st.integers(), max_size=30), st.integers(1, 4))
def test_every_job_is_done_once(jobs: list[int | None], lanes: int) -> None:
    done: list[int | None] = []
    in_lanes(jobs, done.append, lanes)
    assert sorted(done, key=repr) == sorted(jobs, key=repr)


def test_as_many_go_on_at_a_time_as_there_are_lanes() -> None:
    """Each waits for the other: with one lane nobody would come through."""
    together = threading.Barrier(2, timeout=ENOUGH)
    in_lanes(range(4), lambda _: together.wait(), 2)


def test_one_lane_is_the_calling_thread() -> None:
    threads: set[int] = set()
    in_lanes(range(3), lambda _: threads.add(threading.get_ident()), 1)
    assert threads == {threading.get_ident()}


def test_jobs_are_taken_when_a_lane_is_free_and_by_one_thread_at_a_time() -> None:
    """So a generator may look at what has happened meanwhile, without locks of its own."""
    taking, taken, done = threading.Lock(), 0, 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            assert taking.acquire(blocking=False)
            taken += 1
            assert taken - done <= 3
            taking.release()
            yield number

    counting = threading.Lock()

    def work(_: int) -> None:
        nonlocal done
        with counting:
            done += 1

    in_lanes(jobs(), work, 3)
    assert (taken, done) == (50, 50)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_an_error_comes_out_and_nothing_goes_on_behind_it(lanes: int) -> None:
    begun = threading.active_count()

    def work(job: int) -> None:
        if job == 5:
            raise RuntimeError("the sixth")

    with pytest.raises(RuntimeError, match="the sixth"):
        in_lanes(range(20), work, lanes)
    assert threading.active_count() == begun


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_thread_knows_whether_it_works_beside_others(lanes: int) -> None:
    seen: list[bool] = []
    in_lanes(range(4), lambda _: seen.append(beside_others()), lanes)
    assert seen == [lanes > 1] * 4
    assert not beside_others()
    with pytest.raises(ZeroDivisionError):
        in_lanes(range(4), lambda _: 1 / 0, lanes)
    assert not beside_others()


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4))
def test_lanes_are_for_requests_of_many_items(items: int, requests: int, lanes: int) -> None:
    cost = BatchCost(max_tokens=320, call_tokens=32, round_length=16, lanes=lanes)
    chosen = cost_for(cost, items, requests)
    if items >= 8 * requests:
        assert chosen == cost
    else:
        assert (chosen.lanes, chosen.max_tokens) == (1, 320 * lanes)
        assert (chosen.call_tokens, chosen.round_length) == (32, 16)
