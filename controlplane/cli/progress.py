"""Progress of work in the background, on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from controlplane.cli.exits import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controlplane.client_types import Progress

    # a progress, and whose it is where several are shown together
    Show = Callable[[Progress, str], None]

# What people call the converter's steps; each has a fraction of its own.
_STEPS = {
    "wait": "Waiting",
    "load": "Loading",
    "export": "Exporting",
    "verify": "Comparing",
    "write": "Writing",
}
_PHASES = {
    "downloading": "Downloading",
    "installing": "Installing",
    "switching": "Switching",
    "removing": "Removing",
    "verifying": "Verifying",
    "repairing": "Repairing",
}
_MB = 1024 * 1024
_SECOND = 1.0
_LINE_START = "\r\x1b[K"  # ECMA-48: erase to the end of the line


def _stage(progress: Progress) -> str | None:
    """The stage a line or bar is for; None when nothing is being done."""
    if progress.phase == "exporting":
        return _STEPS.get(progress.step, "Converting")
    return _PHASES.get(progress.phase)


@contextmanager
def shown_progress() -> Iterator[Show]:
    """Yields the function to call with each `Progress` and whose it is (empty: the whole's)."""
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _Lines().show


@contextmanager
def shown_waiting(what: str) -> Iterator[None]:
    """On a terminal, from a second on: what is waited for, and for how long. It leaves no trace."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_count_seconds, args=(what, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _count_seconds(what: str, ended: threading.Event) -> None:
    seconds = 0
    while not ended.wait(_SECOND):
        seconds += 1
        click.echo(f"{_LINE_START}{what}, {seconds} s", err=True, nl=False)
    if seconds:
        click.echo(_LINE_START, err=True, nl=False)


class _Lines:
    """A line when the stage changes and at every further tenth of it."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int]] = {}

    def show(self, progress: Progress, subject: str = "") -> None:
        stage = _stage(progress)
        if stage is None:
            return
        state = (stage, int((progress.fraction or 0) * 10))
        if state != self._last.get(subject):
            self._last[subject] = state
            percent = "" if progress.fraction is None else f"{progress.fraction:.0%}"
            words = (subject, f"{stage}:", percent, _detail(progress))
            click.echo(" ".join(filter(None, words)), err=True)


def _detail(progress: Progress) -> str:
    return one_line(progress.message) or _size(progress)


def _size(progress: Progress) -> str:
    if progress.bytes_total is None:
        return ""
    rate = "" if not progress.rate else f", {progress.rate / _MB:.1f} MB/s"
    return f"{(progress.bytes_done or 0) / _MB:.1f} of {progress.bytes_total / _MB:.1f} MB{rate}"


@contextmanager
def _bars() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:12}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    tasks: dict[tuple[str, str], TaskID] = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def finish(subject: str) -> None:
            for (whose, _), task in tasks.items():
                if whose == subject:
                    bars.update(task, completed=1.0, total=1.0, detail="")

        def show(progress: Progress, subject: str = "") -> None:
            stage = _stage(progress)
            if progress.phase == "ready" or (stage and (subject, stage) not in tasks):
                finish(subject)
            if stage is None:
                return
            if (subject, stage) not in tasks:
                # Without a total the bar pulses: something happens, nobody knows how long.
                name = f"{subject} {stage}".strip()
                tasks[subject, stage] = bars.add_task(name, total=None, detail="")
            total = None if progress.fraction is None else 1.0
            done, detail = progress.fraction or 0.0, _detail(progress)
            bars.update(tasks[subject, stage], total=total, completed=done, detail=detail)

        yield show
