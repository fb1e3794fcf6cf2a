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

_PHASES = {"downloading": "Downloading", "exporting": "Converting"}
_MB = 1024 * 1024


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Yields the function to call with each `Progress`; only installing phases are shown."""
    if sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _Lines().show


class _Lines:
    """A line when the phase or step changes and at every further tenth of a phase."""

    def __init__(self) -> None:
        self._last: tuple[str, str, int] | None = None

    def show(self, progress: Progress) -> None:
        if progress.phase not in _PHASES:
            return
        tenth = int((progress.fraction or 0) * 10)
        state = (progress.phase, progress.step, tenth)
        if state != self._last:
            self._last = state
            click.echo(f"{_PHASES[progress.phase]}: {_figures(progress)}".rstrip(": "), err=True)


def _figures(progress: Progress) -> str:
    percent = "" if progress.fraction is None else f"{progress.fraction:.0%}"
    parts = (percent, _size(progress), one_line(progress.message or progress.step))
    return " ".join(part for part in parts if part)


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

        def finish(phases: list[str]) -> None:
            for phase in phases:
                bars.update(tasks[phase], completed=1.0, total=1.0, detail="")

        def show(progress: Progress) -> None:
            if progress.phase == "ready":
                finish(list(tasks))
            if progress.phase not in _PHASES:
                return
            if progress.phase not in tasks:
                finish(list(tasks))
                # Without a total the bar pulses: something happens, nobody knows how long.
                tasks[progress.phase] = bars.add_task(
                    _PHASES[progress.phase], total=None, detail=""
                )
            detail = _size(progress) or one_line(progress.message or progress.step)
            bars.update(
                tasks[progress.phase],
                total=None if progress.fraction is None else 1.0,
                completed=progress.fraction or 0.0,
                detail=detail,
            )

        yield show
