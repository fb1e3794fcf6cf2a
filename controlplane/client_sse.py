"""Server-sent events, line by line (WHATWG HTML, §9.2), and what follows by them."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from controlplane.client_operation_types import Operation
from controlplane.client_types import Event, Gap

# The server says something every 15 s; three times nothing, and it is gone.
SILENCE_SECONDS = 45.0


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an operation of the client: read a stream until it ends or is left.

    Attributes:
        take: called with each line; True when no more is wanted.
        timeout: seconds without a line.
    """

    path: str
    take: Callable[[str], bool]
    timeout: float = SILENCE_SECONDS


class EventLines:
    """Puts events together, line by line."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []

    def take(self, line: str) -> tuple[str, str] | None:
        """Read one line; the name and data of the event that it completes."""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        elif line == "" and self._data:
            complete = self._name, "\n".join(self._data)
            self._name, self._data = "", []
            return complete
        return None


class Follower:
    """What the events of one operation said so far.

    Attributes:
        last: the newest state; None before the first.
    """

    def __init__(
        self, on_operation: Callable[[Operation], None] | None, deadline: float | None
    ) -> None:
        self.last: Operation | None = None
        self._on_operation = on_operation
        self._deadline = deadline
        self._lines = EventLines()

    def take(self, line: str) -> bool:
        """Read one line of the stream; True at the operation's end or the deadline."""
        if (event := self._lines.take(line)) is not None:
            _, data = event
            self._event(data)
        ended = self.last is not None and self.last.finished
        return ended or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _event(self, data: str) -> None:
        self.last = msgspec.json.decode(data, type=Operation)
        if self._on_operation is not None:
            self._on_operation(self.last)


class EventReader:
    """Reads the stream of events; knows where to go on after it was cut off.

    Attributes:
        after: the cursor: `sequence` of the last event that was taken.
        heard: something came over this connection.
    """

    def __init__(
        self,
        after: int,
        on_event: Callable[[Event], None],
        on_gap: Callable[[Gap], None] | None = None,
    ) -> None:
        self.after = after
        self.heard = False
        self._on_event = on_event
        self._on_gap = on_gap
        self._lines = EventLines()

    def begin(self) -> None:
        """Forget what came of an event that the end of a connection cut in two."""
        self.heard = False
        self._lines = EventLines()

    def take(self, line: str) -> bool:
        """Read one line; never asks for the stream's end."""
        self.heard = True
        if (event := self._lines.take(line)) is not None:
            self._dispatch(*event)
        return False

    def _dispatch(self, name: str, data: str) -> None:
        if name == "gap":
            gap = msgspec.json.decode(data, type=Gap)
            self.after = gap.goes_on_after
            if self._on_gap is not None:
                self._on_gap(gap)
            return
        event = msgspec.json.decode(data, type=Event)
        self._on_event(event)
        # after it was taken: a listener that raises has not seen it
        self.after = event.sequence
