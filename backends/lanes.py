"""Runs of one engine that go on beside each other, for engines that gain by it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Job = TypeVar("Job")


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
        while True:
            with taking:
                taken = _first(waiting)
            if not taken:
                return
            work(taken[0])

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
