"""Who is loaded next, and who leaves for it. All of it is synchronous: nothing here awaits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.lifecycle.policy import NOTHING, Room, evictions_for
from controlplane.lifecycle.state import ModelState
from controlplane.lifecycle.turns import Turns

if TYPE_CHECKING:
    from controlplane.lifecycle.ledger import Ledger
    from controlplane.lifecycle.policy import Candidate, Residency
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.switching import Switching
    from controlplane.lifecycle.transitions import Transitions


class Decisions:
    """Looks at the ledger, starts loads and unloads.

    Attributes:
        blocked: somebody waits for what the end of a lease may bring; else it brings nothing.
    """

    def __init__(
        self,
        ledger: Ledger,
        transitions: Transitions,
        switching: Switching,
        residency: Residency,
    ) -> None:
        self._ledger = ledger
        self._transitions = transitions
        self._switching = switching
        self._turns = Turns(ledger, residency)
        self._timer: asyncio.Handle | None = None
        # The timer's own time: uvloop's has none where it was due when it was made.
        self._looks_again_at = 0.0
        self._promised = NOTHING
        self.blocked = False
        self._bound_by_turns = True  # what blocks is nothing but that models have their turns

    def decide(self) -> None:
        """Start what can be started now; called after every change."""
        ledger = self._ledger
        self._cancel_timer()
        self.blocked, self._bound_by_turns = False, True
        if not ledger.server_up or ledger.closing:
            return
        ledger.prune()
        self._turns.begin_round()
        if self._serve_the_line():
            self._bring_back()
        self._turns.end_round()
        self._trim()
        self.blocked |= bool(self._turns.look_again)
        if self._turns.look_again:
            self._look_again_by(min(self._turns.look_again))

    def model_is_idle(self, resident: Resident) -> None:
        """Its last lease has ended. Every request comes this way: decide only if it may help."""
        if not self.blocked:
            return
        when = self._turns.may_leave_at(resident)
        if self._bound_by_turns and when > self._ledger.now():
            self._look_again_by(when)
        else:
            self.decide()

    def _look_again_by(self, when: float) -> None:
        if self._timer is None or self._looks_again_at > when:
            self._cancel_timer()
            self._looks_again_at = when
            self._timer = asyncio.get_running_loop().call_at(when, self.decide)

    def close(self) -> None:
        """Decide nothing more."""
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- in --------------------------------------------------------------------------------

    def _serve_the_line(self) -> bool:
        """Start the loads that somebody waits for; False when one of them must wait for room.

        Room is made for all of them at a time: an unload takes a second, most of it waiting. What
        an earlier one waits for is promised to it (rule 5).
        """
        ledger = self._ledger
        self._promised = NOTHING
        for resident in self._line():
            switch = ledger.switch_of(resident)
            if switch is not None and switch.holds_back(resident):
                continue
            if (reason := ledger.never_fits(resident)) is not None:
                resident.fail_waiters(reason)
            elif not self._start_or_make_room(resident, resident.waiting_since()):
                self.blocked = True
                self._promised = self._promised.plus(Room(resident.need_mb, 1))
        return self._promised is NOTHING

    def _line(self) -> list[Resident]:
        """Those that are waited for, the first to be loaded first."""
        now = self._ledger.now()
        line = []
        for resident in self._ledger.active.values():
            if resident.waiters and resident.state is ModelState.UNLOADED:
                if resident.retry_at > now:  # it is being healed: it does not hold up the others
                    self._turns.look_again.append(resident.retry_at)
                else:
                    line.append(resident)
        # A switch first: who waits for the room of its old version waits for the switch as well.
        return sorted(line, key=lambda r: (not r.switching, r.urgency()))

    def _bring_back(self) -> None:
        """Load what is desired though nobody waits: kept models first, then the latest used."""
        desired = [r for r in self._ledger.active.values() if r.desired and not r.waiters]
        for resident in sorted(desired, key=lambda r: (not r.keep_loaded, -r.last_used)):
            if resident.retry_at > self._ledger.now():
                self._turns.look_again.append(resident.retry_at)
                continue
            if resident.state not in {ModelState.UNLOADED, ModelState.FAILED} or resident.switching:
                continue
            if resident.keep_loaded:
                if self._ledger.never_fits(resident) is None and not self._start_or_make_room(
                    resident, None
                ):
                    self.blocked = True
            elif not self._rivals(resident) and self._fits(resident):
                self._transitions.begin_load(resident)
            else:
                resident.desired = False  # nobody leaves for it; it comes with its next request

    def _start_or_make_room(self, resident: Resident, waiting_since: float | None) -> bool:
        switch = self._ledger.switch_of(resident)
        beside = switch is not None and switch.lets_in(resident)
        if not beside and self._rival_in_memory(resident, waiting_since):
            self._bound_by_turns = False
            return False
        if beside and switch is not None and not switch.together:
            self._switching.drain_first(switch, "their tensors differ")
            return False
        if self._fits(resident):
            self._transitions.begin_load(resident)
            return True
        if beside and switch is not None and self._evictable(resident) is None:
            self._switching.drain_first(switch, "the budget has no room for both")
            return False
        self._make_room(resident, waiting_since)
        return False

    def _fits(self, resident: Resident) -> bool:
        free = self._ledger.free().minus(self._promised)
        return resident.need_mb <= free.memory_mb and free.slots >= 1

    # -- out -------------------------------------------------------------------------------

    def _make_room(self, resident: Resident, waiting_since: float | None) -> None:
        """Evict those whose turn is over; ask busy ones to leave for who waits too long."""
        need, coming = Room(resident.need_mb, 1), self._coming().minus(self._promised)
        holding = self._ledger.holding()
        victims = self._residents(evictions_for(need, coming, self._turns.leavers(holding)))
        if victims is None and waiting_since is not None:
            yielders = self._turns.yielders(holding, waiting_since)
            asked = self._residents(evictions_for(need, coming, yielders)) or []
            self._turns.ask(asked)
            victims = [resident for resident in asked if resident.may_leave]
        for victim in victims or ():
            self._evict(victim)

    def _residents(self, chosen: list[Candidate] | None) -> list[Resident] | None:
        return None if chosen is None else [self._ledger.residents[c.key] for c in chosen]

    def _evict(self, resident: Resident) -> None:
        self._transitions.begin_unload(resident, "yielded" if resident.yielding else "lru_eviction")

    def _coming(self) -> Room:
        """What is free, with what is being freed."""
        free = self._ledger.free()
        leaving = [r for r in self._ledger.holding() if r.state is ModelState.UNLOADING]
        return Room(free.memory_mb + sum(r.ledger_mb for r in leaving), free.slots + len(leaving))

    def _evictable(self, resident: Resident) -> object:
        """Not None when room could be made by those that nobody uses, sooner or later."""
        need = Room(resident.need_mb, 1)
        return evictions_for(need, self._coming(), (r.candidate() for r in self._ledger.holding()))

    def _rivals(self, resident: Resident) -> list[Resident]:
        """Other versions of the same model that hold memory."""
        name = resident.servable.triton_name
        return [
            other
            for other in self._ledger.holding()
            if other.servable.triton_name == name and other is not resident
        ]

    def _rival_in_memory(self, resident: Resident, waiting_since: float | None) -> bool:
        """One version of a model is in memory at a time (domain C-43): the other leaves first.

        During a switch neither side of it leaves. A kept model does: it stays, in another version.
        """
        rivals = self._rivals(resident)
        for other in rivals:
            if other.state is ModelState.LOADED and not other.switching:
                if not other.may_leave and waiting_since is not None:
                    self._turns.ask_rival(other, waiting_since)
                if other.may_leave:
                    self._transitions.begin_unload(other, "version_switch")
        return bool(rivals)

    def _trim(self) -> None:
        """Models grow after they were measured: back into the budget by evicting idle ones."""
        coming = self._coming()
        if coming.memory_mb >= 0:
            return
        idle = [r.candidate() for r in self._ledger.holding()]
        chosen = evictions_for(Room(0.0, 0), coming, idle)
        if chosen is None:  # not enough, but nearer to it
            chosen = [candidate for candidate in idle if candidate.evictable]
            self.blocked, self._bound_by_turns = True, False
        for victim in chosen:
            self._evict(self._ledger.residents[victim.key])
