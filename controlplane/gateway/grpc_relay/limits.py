"""How much of what costs us work and brings nothing a peer may send."""

from __future__ import annotations


class Allowance:
    """A bucket of tokens that refills with time."""

    __slots__ = ("_burst", "_left", "_rate", "_seen")

    def __init__(self, burst: int, rate: float) -> None:
        """
        Args:
            burst: what may be taken at once.
            rate: what comes back per second.
        """
        self._burst = self._left = float(burst)
        self._rate = rate
        self._seen = 0.0

    def take(self, now: float) -> bool:
        """Take one; False when there is none.

        Args:
            now: any clock in seconds, always the same one.
        """
        left = self._left + (now - self._seen) * self._rate
        self._left = min(self._burst, left) - 1.0
        self._seen = now
        return self._left >= 0.0


class RetentionBudget:
    """Bytes of requests that are kept, in all calls together, in case they must be sent again."""

    def __init__(self, total: int) -> None:
        self._left = total

    def take(self, size: int) -> bool:
        """Reserve bytes; False when there is no room."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        """Return what was taken."""
        self._left += size
