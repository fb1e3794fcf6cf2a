"""Views that are refreshed: in place on a terminal, as further text or JSON elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import click

from controlplane.cli.exits import one_line
from controlplane.cli.interrupts import pressed
from controlplane.cli.output import Table, plain_table, rich_table
from controlplane.client_types import ModelMoraApiError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, RenderableType

    from controlplane.cli.output import Block, Output

T = TypeVar("T")
# Beyond a terminal there is no edge to fit into; this is where the longest lines end.
PLAIN_WIDTH = 160


class Size(NamedTuple):
    """Columns and lines; `height` None has no limit."""

    width: int
    height: int | None = None


class View(Protocol[T]):
    """What is shown, and how."""

    def read(self) -> T:
        """Ask the server; raises what the client raises."""
        ...

    def lines(self, value: T, size: Size, /) -> RenderableType:
        """For people."""
        ...

    def document(self, value: T) -> object:
        """For machines: what is printed as JSON."""
        ...

    def lost(self, why: str) -> object:
        """For machines, when the server does not answer."""
        ...


class Watch(Generic[T]):
    """Reads and shows a view again and again, until Ctrl-C."""

    def __init__(self, view: View[T], out: Output, *, interval: float) -> None:
        self._view = view
        self._out = out
        self._interval = interval

    def once(self) -> None:
        """One reading, printed.

        Raises:
            what the client raises.
        """
        value = self._view.read()
        if self._out.as_json:
            self._print_json(self._view.document(value))
        else:
            console = _console()
            console.print(self._view.lines(value, Size(console.width)))

    def forever(self) -> None:
        """Until it is interrupted. A server that goes away meanwhile is waited for.

        Raises:
            what the client raises at the first reading.
        """
        first = self._view.read()  # who watches nothing at all should be told so
        with _ended_by_sigterm():
            if self._out.as_json:
                self._as_json(first)
            elif in_place():
                self._in_place(first)
            else:
                self._as_text(first)

    def _as_json(self, value: T) -> None:
        self._print_json(self._view.document(value))
        for found, why in self._readings():
            shown = self._view.lost(why) if found is None else self._view.document(found)
            self._print_json(shown)

    def _as_text(self, value: T) -> None:
        console = _console()
        console.print(self._view.lines(value, Size(console.width)))
        for found, why in self._readings():
            if found is None:
                console.print(f"\n{why}", markup=False, soft_wrap=True)
            else:
                console.print()
                console.print(self._view.lines(found, Size(console.width)))
            sys.stdout.flush()

    def _in_place(self, value: T) -> None:
        from rich.live import Live

        console = _console()
        frame = Frame(console, self._view, value)
        live = Live(frame, console=console, screen=True, auto_refresh=False)
        try:  # not `with`: Ctrl-C during the start, too, must give the terminal its screen back
            live.start(refresh=True)
            for found, why in self._readings():
                frame.update(found, why)
                live.refresh()
        finally:
            live.stop()

    def _readings(self) -> Iterator[tuple[T | None, str]]:
        due = time.monotonic()
        while True:
            due = max(due + self._interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                yield self._view.read(), ""
            except (ServerUnreachable, ModelMoraApiError) as error:
                yield None, one_line(str(error))

    def _print_json(self, value: object) -> None:
        self._out.result(value, lambda _: ())
        sys.stdout.flush()


class Frame(Generic[T]):
    """What is on the screen: the newest reading, and on top of it, that there is none."""

    def __init__(self, console: Console, view: View[T], value: T) -> None:
        self._console = console
        self._view = view
        self._value = value
        self._why = ""

    def update(self, value: T | None, why: str) -> None:
        """Take a reading; None leaves the last one where it is."""
        self._why = why
        if value is not None:
            self._value = value

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        width, height = self._console.size
        if not self._why:
            return self._view.lines(self._value, Size(width, height))
        banner = Text(
            f"{self._why} Trying again; below is the last that was seen.", style="bold red"
        )
        used = len(banner.wrap(self._console, width)) + 1
        below = self._view.lines(self._value, Size(width, max(1, height - used)))
        return Group(banner, "", below)


def in_place() -> bool:
    """True when stdout is a terminal that can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """`kill` as Ctrl-C: the terminal gets its own screen back."""
    before = signal.signal(signal.SIGTERM, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


interval_option = click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two refreshes.",
)


def away(url: str, why: str) -> dict[str, object]:
    """The document of a refresh that had no answer."""
    now = datetime.now(timezone.utc)
    return {"time": now, "url": url, "connected": False, "error": why}


def as_renderable(blocks: Iterable[Block]) -> RenderableType:
    """Blocks as `Output.result` prints them."""
    from rich.console import Group
    from rich.text import Text

    table = rich_table if sys.stdout.isatty() else _plain
    return Group(*(table(block) if isinstance(block, Table) else Text(block) for block in blocks))


def _plain(table: Table) -> RenderableType:
    from rich.text import Text

    return Text("\n".join(plain_table(table)), no_wrap=True, overflow="ignore")
