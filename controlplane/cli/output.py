"""What commands print: one JSON document for machines, tables and lines for people."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
import msgspec

from controlplane.cli.exits import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import rich.table

T = TypeVar("T")


class Table(NamedTuple):
    """Rows of text under headers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = str | Table


class Output:
    """Prints results to stdout, remarks to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, value: T, for_people: Callable[[T], Iterable[Block]]) -> None:
        """Print the value: as JSON, or as the blocks `for_people` makes of it."""
        if self.as_json:
            click.echo(msgspec.json.encode(document(value)))
            return
        for block in for_people(value):
            _print_table(block) if isinstance(block, Table) else click.echo(block)

    def note(self, text: str) -> None:
        """A remark for people; machines do not see it."""
        if not self.as_json:
            click.echo(text, err=True)


def document(value: Any) -> Any:
    """A result as JSON-ready values: structs as objects without their null fields, as REST does."""
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {name: document(field) for name, field in fields if field is not None}
    if isinstance(value, list | tuple):
        return [document(item) for item in value]
    if isinstance(value, dict):
        return {key: document(item) for key, item in value.items()}
    return value


def _print_table(table: Table) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        Console(markup=False, highlight=False, emoji=False).print(rich_table(table))
        return
    for line in plain_table(table):
        click.echo(line)


def plain_table(table: Table) -> list[str]:
    """Lines without a frame or truncation, so that grep and awk see whole values."""
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [table.headers, *rows]) for i in range(len(table.headers))]
    lines = []
    for row in [[header.upper() for header in table.headers], *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines


def rich_table(table: Table) -> rich.table.Table:
    """For a terminal, of whose width it makes the best."""
    import rich.box
    import rich.table

    grid = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # two columns between cells instead of three: 80 are few
        header_style="bold",
    )
    for position, header in enumerate(table.headers):
        # The first column is what one copies into the next command: never broken.
        grid.add_column(header, overflow="fold", no_wrap=position == 0)
    for row in table.rows:
        grid.add_row(*(one_line(cell) for cell in row))
    return grid


def facts(pairs: Iterable[tuple[str, Any]]) -> Iterable[str]:
    """`name  value` lines, aligned; pairs without a value are left out."""
    known = [(name, one_line(str(value))) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in known]


def megabytes(value: float | None) -> str:
    """Memory for people: `205 MB`, `12.3 GB`; '-' when unknown."""
    if value is None:
        return "-"
    return f"{value / 1024:.1f} GB" if value >= 10_240 else f"{value:.0f} MB"


def moment(value: datetime | None) -> str:
    """A time in UTC to the second; '-' when there is none."""
    if value is None:
        return "-"
    return value.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def age(value: datetime | None) -> str:
    """How long ago, `12 min ago`; '-' when there is none."""
    if value is None:
        return "-"
    seconds = (datetime.now(timezone.utc) - value).total_seconds()
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"
