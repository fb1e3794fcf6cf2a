"""The command top: what is in memory, who waits and what happens, live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlplane.cli.base import client_command
from controlplane.cli.live import Size, Watch, away, interval_option
from controlplane.cli.output import Output, document
from controlplane.cli.top_figures import SORTS, Rates, Top, clock, read_counters
from controlplane.client_types import ServerUnreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import Event

_LIFECYCLE = "model_lifecycle_manager"


@click.command()
@interval_option
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(SORTS)),
    default="memory",
    show_default=True,
    help="Order of the models.",
)
@click.option(
    "--events",
    "events_shown",
    type=click.IntRange(0, 100),
    default=8,
    show_default=True,
    help="How many of the last events to show.",
)
@click.option("--once", is_flag=True, help="Show it once and end.")
@client_command
def top(
    client: ModelMoraClient,
    out: Output,
    interval: float,
    order: str,
    events_shown: int,
    once: bool,
) -> None:
    """Show memory, models, waiting requests and events, live; Ctrl-C ends it.

    \b
    Example:
      modelmora top
      modelmora top --sort requests --interval 1
      modelmora top --once --json
    """
    watch = Watch(TopView(client, order, events_shown), out, interval=interval)
    if once:
        watch.once()
    else:
        watch.forever()


class TopView:
    """A `live.View`."""

    def __init__(self, client: ModelMoraClient, order: str, events_shown: int) -> None:
        self._client = client
        self._order = order
        self._events_shown = events_shown
        self._rates = Rates()
        self._events: list[Event] = []
        self._newest = -1

    def read(self) -> Top:
        try:
            lifecycle, text = self._client.lifecycle(), self._client.metrics().decode()
        except ServerUnreachable:
            self._rates.forget()  # its counters may begin anew
            raise
        counters = read_counters(text, clock())
        if lifecycle.last_event != self._newest and self._events_shown:
            page = self._client.events(aggregate_type=_LIFECYCLE, page_size=self._events_shown)
            self._events, self._newest = page.data[::-1], lifecycle.last_event
        return self._rates.top(self._client.url, lifecycle, counters, self._events, self._order)

    def lines(self, value: Top, size: Size, /) -> RenderableType:
        from controlplane.cli.top_view import screen

        return screen(value, width=size.width, height=size.height)

    def document(self, value: Top) -> object:
        # one object per model: the state's fields and the rates beside each other
        shown: dict[str, object] = document(value)
        shown["models"] = [
            document(row.model) | {k: v for k, v in document(row).items() if k != "model"}
            for row in value.models
        ]
        return shown

    def lost(self, why: str) -> object:
        return away(self._client.url, why)
