"""Being asked to stop."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class FetchCancelled(Exception):
    """The caller asked to stop; what came of the files so far may be kept for another time."""


class Cancellation(Protocol):
    """What `threading.Event` offers to those who look whether to stop."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


class Stop:
    """Set when the caller's event is, or by `set`: for the threads of one fetch."""

    def __init__(self, outer: Cancellation) -> None:
        self._outer = outer
        self._own = threading.Event()

    def set(self) -> None:
        self._own.set()

    def is_set(self) -> bool:
        return self._own.is_set() or self._outer.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self.is_set() and (left := deadline - time.monotonic()) > 0:
            self._outer.wait(min(left, 0.1))
        return self.is_set()
