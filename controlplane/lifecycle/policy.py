"""Which models leave memory so that another can enter, and how long one may stay although others
wait: pure functions, no clock, no I/O. docs/lifecycle.md has the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Candidate(msgspec.Struct, frozen=True):
    """A model in memory as the policy sees it.

    Attributes:
        key: its identity.
        memory_mb: what it counts against the budget.
        last_used: any monotonic measure; smaller is longer ago.
        evictable: loaded, without a running or waiting request, and not marked to stay.
    """

    key: tuple[str, int]
    memory_mb: float
    last_used: float
    evictable: bool


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a model wants of its stay in memory.

    Attributes:
        keep_loaded: it is never evicted, and comes back by itself.
        idle_ttl: seconds without use after which it leaves; 0 is right after use, below 0 never,
            None as the setting says.
    """

    keep_loaded: bool = False
    idle_ttl: float | None = None


class Residency(msgspec.Struct, frozen=True, kw_only=True):
    """How models take turns when more are wanted than fit; in seconds.

    A loaded model has a *turn*: at least as long as its load took, so that memory is used for at
    least as long as it is being filled. In its turn a model is not evicted, unless nobody has used
    it for `grace` of the turn: then it is not worth waiting for. When somebody has waited for room
    for `patience`, models that are past their turn yield although they are busy: they take no new
    requests, end the running ones and leave. One that has not ended them after `drain` goes on.
    """

    shortest_turn: float = 1.0
    longest_turn: float = 30.0
    grace: float = 0.1
    patience: float = 3.0
    drain: float = 30.0

    def turn(self, load_seconds: float | None) -> float:
        """Length of the turn of a model whose load took that long."""
        return min(max(load_seconds or 0.0, self.shortest_turn), self.longest_turn)

    def may_leave_at(
        self, turn_began: float, last_used: float, load_seconds: float | None
    ) -> float:
        """From when on an idle model may be evicted for another."""
        turn = self.turn(load_seconds)
        return min(turn_began + turn, last_used + self.grace * turn)

    def may_yield_at(self, turn_began: float, load_seconds: float | None) -> float:
        """From when on a busy model may be asked to leave for another."""
        return turn_began + self.turn(load_seconds)


def idle_limit(own: float | None, default: float | None) -> float | None:
    """Seconds without use after which a model leaves; None is never.

    Args:
        own: the model's; below 0 is never, None takes the default.
    """
    limit = default if own is None else own
    return None if limit is None or limit < 0 else limit


class Room(msgspec.Struct, frozen=True):
    """What is free, in MB and in model slots; may be negative when over the budget."""

    memory_mb: float
    slots: int

    def plus(self, other: Room) -> Room:
        """Both together."""
        return Room(self.memory_mb + other.memory_mb, self.slots + other.slots)

    def minus(self, other: Room) -> Room:
        """What is left when `other` is taken."""
        return Room(self.memory_mb - other.memory_mb, self.slots - other.slots)


NOTHING = Room(0.0, 0)


def evictions_for(need: Room, free: Room, residents: Iterable[Candidate]) -> list[Candidate] | None:
    """The models to evict so that `need` fits into what is free.

    Least recently used first; then those that turn out not to be needed are spared, the most
    recently used ones first, so that no model leaves in vain.

    Returns:
        The victims in order of eviction, [] when nothing has to leave, None when evicting all
        evictable models would not make enough room.
    """
    chosen: list[Candidate] = []
    for candidate in sorted(residents, key=lambda c: c.last_used):
        if _fits(need, free, chosen):
            break
        if candidate.evictable:
            chosen.append(candidate)
    if not _fits(need, free, chosen):
        return None
    for candidate in reversed(chosen.copy()):
        without = [c for c in chosen if c is not candidate]
        if _fits(need, free, without):
            chosen = without
    return chosen


def _fits(need: Room, free: Room, freed: Sequence[Candidate]) -> bool:
    memory = free.memory_mb + sum(candidate.memory_mb for candidate in freed)
    return need.memory_mb <= memory and need.slots <= free.slots + len(freed)
