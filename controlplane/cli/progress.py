"""Progress of an installation, on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from controlplane.cli.exits import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controlplane.client_types import Progress

# What people call the converter's steps; each has a fraction of its own.
_STEPS = {
    "wait": "Waiting",
    "load": "Loading",
    "export": "Exporting",
    "verify": "Verifying",
    "write": "Writing",
}
_MB = 1024 * 1024


def _stage(progress: Progress) -> str | None:
    """The stage a line or bar is for; None when nothing is being installed."""
    if progress.phase == "exporting":
        return _STEPS.get(progress.step, "Converting")
    return "Downloading" if progress.phase == "downloading" else None


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Yields the function to call with each `Progress`; only installing phases are shown."""
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _Lines().show


class _Lines:
    """A line when the stage changes and at every further tenth of it."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def show(self, progress: Progress) -> None:
        stage = _stage(progress)
        if stage is None:
            return
        state = (stage, int((progress.fraction or 0) * 10))
        if state != self._last:
            self._last = state
            percent = "" if progress.fraction is None else f"{progress.fraction:.0%}"
            click.echo(" ".join(filter(None, (f"{stage}:", percent, _detail(progress)))), err=True)


def _detail(progress: Progress) -> str:
    rate = "" if not progress.rate else f"{progress.rate / _MB:.1f} MB/s"
    return ", ".join(filter(None, (one_line(progress.message) or _size(progress), rate)))


def _size(progress: Progress) -> str:
    if progress.bytes_total is None:
        return ""
    return f"{(progress.bytes_done or 0) / _MB:.1f} of {progress.bytes_total / _MB:.1f} MB"


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def finish_all() -> None:
            for task in tasks.values():
                bars.update(task, completed=1.0, total=1.0, detail="")

        def show(progress: Progress) -> None:
            stage = _stage(progress)
            if progress.phase == "ready" or (stage and stage not in tasks):
                finish_all()
            if stage is None:
                return
            if stage not in tasks:
                # Without a total the bar pulses: something happens, nobody knows how long.
                tasks[stage] = bars.add_task(stage, total=None, detail="")
            total = None if progress.fraction is None else 1.0
            done = progress.fraction or 0.0
            bars.update(tasks[stage], total=total, completed=done, detail=_detail(progress))

        yield show
