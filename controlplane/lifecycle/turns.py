"""Rule 9: models take turns with memory. Who may leave now, who is asked to.

The lengths are those of `policy.Residency`. A round is one run of `Decisions.decide`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.lifecycle.ledger import Ledger
    from controlplane.lifecycle.policy import Candidate, Residency
    from controlplane.lifecycle.resident import Resident


class Turns:
    """Keeps who yields.

    Attributes:
        look_again: the times at which this round's answers may change by themselves.
    """

    def __init__(self, ledger: Ledger, residency: Residency) -> None:
        self._ledger = ledger
        self._residency = residency
        self._asked: set[Resident] = set()
        self.look_again: list[float] = []

    def begin_round(self) -> None:
        """Forget the answers of the round before."""
        self._asked.clear()
        self.look_again.clear()

    def leavers(self, holding: Iterable[Resident]) -> list[Candidate]:
        """All that hold memory; evictable are those that nobody uses and whose turn is over."""
        return [r.candidate(self._may_leave(r)) for r in holding]

    def _may_leave(self, resident: Resident) -> bool:
        if not resident.may_leave or resident.stays:
            return False
        return self._is_past(self.may_leave_at(resident))

    def may_leave_at(self, resident: Resident) -> float:
        """From when on it may leave, if nobody uses it until then."""
        if resident.yielding:
            return 0.0
        return self._residency.may_leave_at(
            resident.turn_began, resident.last_used, resident.load_seconds
        )

    def yielders(self, holding: Iterable[Resident], waiting_since: float) -> list[Candidate]:
        """As `leavers`, with busy models past their turn, the least recently *loaded* first.

        By load, not by use: all busy models are used now, and who came last had its turn least.
        """
        patient = self._is_past(waiting_since + self._residency.patience)
        found = []
        for resident in holding:
            candidate = resident.candidate(self._may_yield(resident) and patient)
            # Who was asked before stays asked: otherwise two would drain where one is enough.
            since = float("-inf") if resident.yielding else resident.turn_began
            found.append(msgspec.structs.replace(candidate, last_used=since))
        return found

    def _may_yield(self, resident: Resident) -> bool:
        if resident.state is not ModelState.LOADED or resident.stays:
            return False
        return self._may_leave(resident) or self._is_past(
            self._residency.may_yield_at(resident.turn_began, resident.load_seconds)
        )

    def ask(self, residents: Iterable[Resident]) -> None:
        """Have them take no new requests, until they have left or nobody needs their room."""
        now = self._ledger.now()
        for resident in residents:
            if resident.yielding_since is None:
                resident.yielding_since = now
            until = resident.yielding_since + self._residency.drain
            if until > now:
                self._asked.add(resident)
                self.look_again.append(until)
            else:  # what runs there takes too long: another's turn to leave
                resident.turn_began = now

    def ask_rival(self, resident: Resident, waiting_since: float) -> None:
        """As `ask`, for another version of the model that somebody has waited for too long."""
        turn_over = self._residency.may_yield_at(resident.turn_began, resident.load_seconds)
        patient = self._is_past(waiting_since + self._residency.patience)
        if self._is_past(turn_over) and patient:
            self.ask([resident])

    def end_round(self) -> None:
        """Those that were asked before and are not needed any more serve on."""
        for resident in self._ledger.holding():
            if resident.yielding and resident not in self._asked:
                resident.yielding_since = None
                if resident.state is ModelState.LOADED:
                    resident.serve_waiters(self._ledger.now())

    def _is_past(self, when: float) -> bool:
        if when <= self._ledger.now():
            return True
        self.look_again.append(when)
        return False
