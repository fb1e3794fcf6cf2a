"""How `modelmora top` looks: text for a width, without a clock or a terminal of its own."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from controlplane.cli.exits import one_line
from controlplane.cli.output import duration, megabytes
from controlplane.cli.top_events import described

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from controlplane.cli.top_figures import Top, TopModel
    from controlplane.client_types import Budget, WaitingRequest

STATE_STYLES = {
    "loaded": "green",
    "loading": "cyan",
    "unloading": "yellow",
    "unhealthy": "bold red",
    "failed": "bold red",
}
_BAR_MAX = 40
_HEADER_MAX = 120
_GAP = 2
_MODEL_MIN = 24
_WAITING_SHOWN = 5
_PRIORITIES = {1: "critical", 2: "high", 3: "medium", 4: "low"}


class Column(NamedTuple):
    """A column of the table; `rank` says which ones go first where there is no room for all."""

    name: str
    rank: int
    cell: Callable[[TopModel, datetime], str]
    right: bool = True


def screen(top: Top, *, width: int, height: int | None) -> Text:
    """The whole view.

    Args:
        width: columns; wide lines are cut, columns that do not fit left out.
        height: lines; models that do not fit are counted instead. None has no limit.
    """
    head = [*_header(top, width), Text()]
    tail = [*_waiting(top, width), *_events(top, width)]
    room = None if height is None else height - len(head) - 1
    if room is not None and len(tail) > max(0, room - 4):
        tail = tail[: max(0, room - 4)]  # models before events
    rows = _models(top, width)
    room = None if room is None else room - len(tail)
    if room is not None and len(rows) > max(1, room):
        hidden = len(rows) - max(1, room) + 1
        rows = [*rows[: max(0, room - 1)], Text(f"… {hidden} more lines", style="dim")]
    return Text("\n").join(_cut(line, width) for line in [*head, *rows, *tail])


# -- the head ----------------------------------------------------------------------------------


def _header(top: Top, width: int) -> list[Text]:
    first = Text("ModelMora", style="bold")
    first.append(f"  up {duration(top.uptime_seconds)}  Triton ", style="not bold")
    first.append_text(_triton(top))
    stamp = f"{top.time.astimezone(timezone.utc):%H:%M:%SZ}"
    space = min(width, _HEADER_MAX) - first.cell_len - len(stamp)
    if space >= _GAP:
        first.append(" " * space + stamp, style="not bold dim")
    return [first, _memory(top.memory, width), _totals(top)]


def _triton(top: Top) -> Text:
    state, restarts = str(top.triton.get("state", "unknown")), top.triton.get("restarts", 0)
    shown = Text(state, style="not bold green" if state == "ready" else "bold red")
    if restarts:
        shown.append(f", {restarts} restart{'' if restarts == 1 else 's'}", style="not bold yellow")
    return shown


def _memory(memory: Budget, width: int) -> Text:
    used, budget = memory.used_mb, memory.budget_mb
    percent = 100 * used / budget if budget else 0.0
    words = f"{megabytes(used)} of {megabytes(budget)} ({percent:.0f} %)"
    if memory.reserved_mb:
        words += f", {megabytes(memory.reserved_mb)} loading"
    if memory.leaving_mb:
        words += f", {megabytes(memory.leaving_mb)} leaving"
    size = min(_BAR_MAX, width - len("Memory  []  ") - len(words))
    line = Text("Memory  ")
    if size >= 5:
        line.append_text(_bar(memory, size)).append("  ")
    return line.append(words)


def _bar(memory: Budget, size: int) -> Text:
    """`[####++....]`: in use or leaving, loading, free."""
    scale = size / memory.budget_mb if memory.budget_mb else 0.0
    used = min(size, round(memory.used_mb * scale))
    if memory.used_mb > 0:
        used = max(1, used)  # a small model in a large budget is something all the same
    coming = min(used, round(memory.reserved_mb * scale))
    share = memory.used_mb / memory.budget_mb if memory.budget_mb else 0.0
    style = "red" if share > 0.9 else "yellow" if share > 0.75 else "green"
    return Text.assemble(
        "[",
        ("#" * (used - coming), style),
        ("+" * coming, "cyan"),
        ("." * (size - used), "dim"),
        "]",
    )


def _totals(top: Top) -> Text:
    memory = top.memory
    line = Text(f"Models  {memory.models} of {memory.max_models}")
    running = sum(row.model.active_requests for row in top.models)
    line.append(f"   requests {_rate(top.requests_per_second)}/s   running {running}   ")
    waiting = f"waiting {top.waiting_count}"
    by_priority = [
        f"{count} {name.removesuffix('_priority')}"
        for name, count in top.queue_depth.items()
        if count
    ]
    if by_priority:
        waiting += f" ({', '.join(by_priority)})"
    return line.append(waiting, style="yellow" if top.waiting_count else "")


# -- the table ---------------------------------------------------------------------------------


def _models(top: Top, width: int) -> list[Text]:
    if not top.models:
        return [Text("No model is in memory; the first request for one loads it.", style="dim")]
    columns = _fitting(top, width)
    cells = [[column.cell(row, top.time) for column in columns] for row in top.models]
    widths = [
        max(len(column.name), *(cell_len(row[i]) for row in cells))
        for i, column in enumerate(columns)
    ]
    ids = [_identity(row) for row in top.models]
    left = width - sum(widths) - _GAP * len(columns)
    first = max(5, min(left, max(5, *(cell_len(name) for name in ids))))
    lines = [_line("MODEL", [c.name for c in columns], columns, first, widths)]
    lines[0].stylize("bold")
    for row, name, texts in zip(top.models, ids, cells, strict=True):
        line = _line(shortened(name, first), texts, columns, first, widths)
        _colour_state(line, row.model.state)
        lines += [line, *_remark(row, top.time)]
    return lines


def _fitting(top: Top, width: int) -> list[Column]:
    """Those columns that have room, in their order on the screen."""
    longest = max(cell_len(_identity(row)) for row in top.models)
    left = width - min(longest, max(_MODEL_MIN, width // 3))
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        cells = (cell_len(column.cell(row, top.time)) for row in top.models)
        size = _GAP + max(len(column.name), *cells)
        if size > left:
            break
        left -= size
        chosen.append(column)
    return sorted(chosen, key=COLUMNS.index)


def _line(
    first: str, texts: Sequence[str], columns: Sequence[Column], size: int, widths: Sequence[int]
) -> Text:
    parts = [first + " " * (size - cell_len(first))]
    for text, column, wide in zip(texts, columns, widths, strict=True):
        pad = " " * (wide - cell_len(text))
        parts.append(pad + text if column.right else text + pad)
    return Text((" " * _GAP).join(parts).rstrip())


def _colour_state(line: Text, state: str) -> None:
    line.highlight_regex(rf"(?<=\s){state}(?=\s|$)", STATE_STYLES.get(state, ""))


def _remark(row: TopModel, now: datetime) -> list[Text]:
    """Why a model does not serve, on a line of its own."""
    model = row.model
    if model.state not in ("failed", "unhealthy"):
        return []
    health = model.health_status
    why = (health.error_message if health else None) or "no reason was given"
    if model.retry_at is not None:
        left = (model.retry_at - now).total_seconds()
        again = f"in {left:.0f} s" if left >= 1 else "at the next request"
        why = f"tried again {again}: {why}"
    return [Text(f"  {one_line(why)}", style="red")]


def shortened(model_id: str, width: int) -> str:
    """The id in that many columns; of its two parts the organisation is given up first."""
    if cell_len(model_id) <= width:
        return model_id
    organisation, slash, name = model_id.partition("/")
    room = width - cell_len(name) - len("…/")
    if slash and room >= 2:
        return f"{organisation[:room]}…/{name}"
    return f"…{model_id[-(width - 1) :]}" if width > 1 else "…"


def _identity(row: TopModel) -> str:
    model = row.model
    return model.model_id if model.version == "main" else f"{model.model_id}@{model.version}"


def _memory_cell(row: TopModel, _: datetime) -> str:
    guessed = "" if row.model.memory_source in (None, "measured") else "~"
    shown = megabytes(row.model.memory_usage_mb)
    return "-" if row.model.state in ("failed", "unloaded") else f"{guessed}{shown}"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _ago(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return "-"
    seconds = (now - moment).total_seconds()
    return "now" if seconds < 1 else duration(seconds)


def _hits(row: TopModel, _: datetime) -> str:
    hits, misses = row.model.cache_hits, row.model.cache_misses
    return f"{100 * hits / (hits + misses):.0f} %" if hits + misses else "-"


def _load_time(row: TopModel, _: datetime) -> str:
    seconds = row.model.loads.last_seconds if row.model.loads else None
    return "-" if seconds is None else f"{seconds:.1f} s"


COLUMNS = (
    Column("STATE", 1, lambda row, _: row.model.state, right=False),
    Column("MEMORY", 2, _memory_cell),
    Column("PEAK", 9, lambda row, _: megabytes(row.model.peak_memory_mb)),
    Column("RUN", 3, lambda row, _: str(row.model.active_requests)),
    Column("WAIT", 4, lambda row, _: str(row.model.waiting_requests)),
    Column("REQ/S", 5, lambda row, _: _rate(row.requests_per_second)),
    Column("P50", 8, lambda row, _: _time(row.p50_ms)),
    Column("P95", 6, lambda row, _: _time(row.p95_ms)),
    Column("HITS", 10, _hits),
    Column("LOADS", 11, lambda row, _: str(row.model.loads.count if row.model.loads else 0)),
    Column("LOAD", 12, _load_time),
    Column("USED", 7, lambda row, now: _ago(row.model.last_used_at, now)),
)


# -- who waits, what happened --------------------------------------------------------------------


def _waiting(top: Top, width: int) -> list[Text]:
    """Runs of requests that wait for the same thing as one line, in the order of their turn."""
    runs: list[list[WaitingRequest]] = []
    for request in top.waiting:
        alike = (request.model_id, request.version, request.priority, request.waits_for)
        last = runs[-1][0] if runs else None
        if last and alike == (last.model_id, last.version, last.priority, last.waits_for):
            runs[-1].append(request)
        else:
            runs.append([request])
    if not runs:
        return []
    lines = [Text(), Text("WAITING", style="bold")]
    lines += [_run(run, width) for run in runs[:_WAITING_SHOWN]]
    if (rest := top.waiting_count - sum(map(len, runs[:_WAITING_SHOWN]))) > 0:
        lines.append(Text(f"… {rest} more requests", style="dim"))
    return lines


def _run(run: Sequence[WaitingRequest], width: int) -> Text:
    first = run[0]
    longest = max(request.waited_seconds for request in run)
    name = shortened(first.model_id, max(_MODEL_MIN, width // 2))
    priority = _PRIORITIES.get(first.priority, str(first.priority))
    reason = first.waits_for.replace("_", " ")
    return Text(f"{len(run):>5}x {name}  {priority}, for {reason}, {longest:.1f} s")


def _events(top: Top, width: int) -> list[Text]:
    if not top.events:
        return []
    lines = [Text(), Text("EVENTS", style="bold")]
    for event in top.events:
        words, style = described(event)
        stamp = f"{event.timestamp.astimezone(timezone.utc):%H:%M:%S}"
        name = one_line(str(event.payload.get("model_id", "")))
        name = f"{shortened(name, max(_MODEL_MIN, width // 3))}  " if name else ""
        lines.append(Text.assemble((f"{stamp}  ", "dim"), name, (words, style)))
    return lines


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
