"""The eviction policy: least recently used, never in vain, never a busy model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.lifecycle.policy import Candidate, Room, evictions_for


def candidate(number: int, mb: float, last_used: float, *, evictable: bool = True) -> Candidate:
    return Candidate(("m", number), mb, last_used, evictable)


def test_nothing_leaves_when_there_is_room() -> None:
    assert evictions_for(Room(100, 1), Room(100, 1), [candidate(1, 50, 0)]) == []


def test_the_least_recently_used_leaves_first() -> None:
    old, new = candidate(1, 50, 1.0), candidate(2, 50, 2.0)
    assert evictions_for(Room(50, 1), Room(0, 1), [new, old]) == [old]


def test_a_small_model_is_spared_when_the_next_alone_makes_room() -> None:
    small, big = candidate(1, 10, 1.0), candidate(2, 1000, 2.0)
    assert evictions_for(Room(900, 1), Room(0, 5), [small, big]) == [big]


def test_a_slot_is_made_even_when_memory_suffices() -> None:
    old = candidate(1, 10, 1.0)
    assert evictions_for(Room(5, 1), Room(500, 0), [old]) == [old]


def test_none_when_all_that_is_idle_does_not_suffice() -> None:
    busy = candidate(1, 500, 1.0, evictable=False)
    assert evictions_for(Room(100, 1), Room(0, 1), [busy, candidate(2, 50, 2.0)]) is None


candidates = st.lists(
    st.builds(
        Candidate,
        st.tuples(st.just("m"), st.integers(0, 10**6)),
        st.integers(1, 1000),
        st.integers(0, 50),
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda c: c.key,
)


@given(
    need=st.builds(Room, st.integers(0, 2000), st.integers(0, 1)),
    free=st.builds(Room, st.integers(-500, 1000), st.integers(-1, 3)),
    residents=candidates,
)
def test_victims_suffice_and_none_leaves_in_vain(
    need: Room, free: Room, residents: list[Candidate]
) -> None:
    def fits(victims: list[Candidate]) -> bool:
        memory = free.memory_mb + sum(v.memory_mb for v in victims)
        return need.memory_mb <= memory and need.slots <= free.slots + len(victims)

    evictable = [c for c in residents if c.evictable]
    victims = evictions_for(need, free, residents)
    if victims is None:
        assert not fits(evictable)
        return
    assert fits(victims)
    assert all(v.evictable for v in victims)
    for victim in victims:
        assert not fits([v for v in victims if v is not victim])
