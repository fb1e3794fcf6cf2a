"""A thread that does jobs in the order they came, one at a time."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Job = TypeVar("Job")


class OneByOne(Generic[Job]):
    """First come, first served; `put` returns at once.

    Args:
        work: does one job; must not raise.
    """

    def __init__(self, work: Callable[[Job], None]) -> None:
        self._work = work
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="one-by-one", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """True when the job under way should end early."""
        return self._stopping.is_set()

    def put(self, job: Job) -> None:
        """Do it when all that came before are done."""
        self._waiting.put(job)

    def stop(self) -> list[Job]:
        """End after the job under way; the jobs that were never begun."""
        self._stopping.set()
        self._waiting.put(None)
        self._thread.join()
        left = []
        while not self._waiting.empty():
            job = self._waiting.get()
            if job is not None:
                left.append(job)
        return left

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            if self._stopping.is_set():
                self._waiting.put(job)  # for `stop`, which gives it back
                return
            self._work(job)
