"""Runs of one engine that go on beside each other, for engines that gain by it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backends.engines import BatchCost

Job = TypeVar("Job")

# Texts a request from which on lanes gain: the sub-batches of 32 mixed texts run 1.2 times as fast
# in lanes, but single texts of many clients at two thirds (docs/benchmarks.md): there the clients
# and the servers want the cores too, and a lane whose core is taken holds up the other.
MANY_ITEMS = 8
_here = threading.local()


def beside_others() -> bool:
    """True in a thread that works in a lane beside others."""
    return getattr(_here, "beside_others", False)


def cost_for(cost: BatchCost, items: int, requests: int) -> BatchCost:
    """How items of so many requests are best cut: for lanes, or for one wide run at a time."""
    return cost if items >= MANY_ITEMS * requests else cost.wide


def in_lanes(jobs: Iterable[Job], work: Callable[[Job], object], lanes: int) -> None:
    """Do all jobs, as many at a time as there are lanes; return when all are done.

    With one lane everything happens in the calling thread, as what asks Triton must
    (`NativeEngine`). Threads are started per call: that is microseconds, of milliseconds a run.

    Args:
        jobs: each is taken when a lane is free for it, by one thread at a time, so that a generator
            may look then whether anybody still wants it.

    Raises:
        Exception: what a job raised; the other lanes end first.
    """
    if lanes <= 1:
        for job in jobs:
            work(job)
        return
    waiting, taking = iter(jobs), threading.Lock()

    def lane() -> None:
        _here.beside_others = True
        try:
            while taken := take():
                work(taken[0])
        finally:
            _here.beside_others = False

    def take() -> list[Job]:
        with taking:
            return _first(waiting)

    with ThreadPoolExecutor(lanes - 1, thread_name_prefix="lane") as others:
        running = [others.submit(lane) for _ in range(lanes - 1)]
        lane()
    for one in running:
        one.result()


def _first(waiting: Iterable[Job]) -> list[Job]:
    """The next one, or none: a job may be any value, None too."""
    for job in waiting:
        return [job]
    return []
