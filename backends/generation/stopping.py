"""Stop strings: what may be sent on, and where the text ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string; holds back what may be the start of one.

    However the text is cut into pieces, what comes out is the text before the earliest place
    where a stop string is complete, or all of it when there is none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.reached = False

    def feed(self, piece: str) -> str:
        """The text that may be sent now; sets `reached` when a stop string is complete."""
        text = self._held + piece
        end = self._first_complete(text)
        if end is not None:
            self._held, self.reached = "", True
            return text[:end]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, for a text that has ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self, text: str) -> int | None:
        """Where the stop string begins that is complete first; of several, the longest."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=0) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
