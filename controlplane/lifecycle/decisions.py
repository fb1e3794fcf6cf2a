"""Who is loaded next, and who leaves for it. All of it is synchronous: nothing here awaits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.lifecycle.policy import Room, evictions_for
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from controlplane.lifecycle.ledger import Ledger
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.switching import Switching
    from controlplane.lifecycle.transitions import Transitions


class Decisions:
    """Looks at the ledger, starts loads and unloads."""

    def __init__(self, ledger: Ledger, transitions: Transitions, switching: Switching) -> None:
        self._ledger = ledger
        self._transitions = transitions
        self._switching = switching

    def decide(self) -> None:
        """Start what can be started now; called after every change."""
        ledger = self._ledger
        if not ledger.server_up or ledger.closing:
            return
        wanted = [
            r for r in ledger.residents.values() if r.waiters and r.state is ModelState.UNLOADED
        ]
        # A switch first: who waits for the room of its old version waits for the switch as well.
        for resident in sorted(wanted, key=lambda r: (not r.switching, r.urgency())):
            switch = ledger.switch_of(resident)
            if switch is not None and switch.holds_back(resident):
                continue
            if not self._start_or_make_room(resident):
                return  # rule 5
        self._trim()

    def _start_or_make_room(self, resident: Resident) -> bool:
        switch = self._ledger.switch_of(resident)
        beside = switch is not None and switch.lets_in(resident)
        if not beside and self._rival_in_memory(resident):
            return False
        need, free = Room(resident.need_mb, 1), self._ledger.free()
        if beside and switch is not None and not switch.together:
            self._switching.drain_first(switch, "their tensors differ")
            return False
        if need.memory_mb <= free.memory_mb and need.slots <= free.slots:
            self._transitions.begin_load(resident)
            return True
        victims = self._victims(need, free)
        if victims is None and beside and switch is not None:
            self._switching.drain_first(switch, "the budget has no room for both")
        for victim in victims or ():
            self._transitions.begin_unload(victim, "lru_eviction")
        return False

    def _rival_in_memory(self, resident: Resident) -> bool:
        """One version of a model is in memory at a time (domain C-43): the other leaves first.

        During a switch neither side of it is evictable.
        """
        for other in self._ledger.residents.values():
            same = other.servable.triton_name == resident.servable.triton_name
            if same and other is not resident and other.holds_memory:
                if other.candidate().evictable:
                    self._transitions.begin_unload(other, "version_switch")
                return True
        return False

    def _trim(self) -> None:
        """Models grow after they were measured: back into the budget by evicting idle ones."""
        free = self._ledger.free()
        if free.memory_mb < 0:
            for victim in self._victims(Room(0.0, 0), free) or ():
                self._transitions.begin_unload(victim, "lru_eviction")

    def _victims(self, need: Room, free: Room) -> list[Resident] | None:
        residents = self._ledger.residents
        leaving = [r for r in residents.values() if r.state is ModelState.UNLOADING]
        coming = Room(free.memory_mb + sum(r.ledger_mb for r in leaving), free.slots + len(leaving))
        holding = (r.candidate() for r in residents.values() if r.holds_memory)
        chosen = evictions_for(need, coming, holding)
        return None if chosen is None else [residents[c.key] for c in chosen]
