"""Which models leave memory so that another can enter: pure functions, no clock, no I/O."""

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


class Room(msgspec.Struct, frozen=True):
    """What is free, in MB and in model slots; may be negative when over the budget."""

    memory_mb: float
    slots: int


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
