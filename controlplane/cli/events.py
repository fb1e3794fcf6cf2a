"""The command events: what has happened, and what happens."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click
import msgspec

from controlplane.cli.base import client_command
from controlplane.cli.exits import one_line
from controlplane.cli.output import Block, Output, document, moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import Event, EventPage

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.command()
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--type", "event_type", metavar="TYPE", help="model.loaded, or all of 'model.*'.")
@click.option("--model", "model_id", metavar="MODEL_ID", help="Only events about this model.")
@click.option("--since", metavar="TIME", help="2026-01-31T12:00:00Z, or how long ago: 30m, 2h, 7d.")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=50, show_default=True)
@client_command
def events(
    client: ModelMoraClient,
    out: Output,
    follow: bool,
    event_type: str | None,
    model_id: str | None,
    since: str | None,
    **paging: Any,
) -> None:
    """Show what has happened to models, the latest last.

    \b
    Example:
      modelmora events --type 'model.*' --since 2h
      modelmora events --follow --json
    """
    begin = None if since is None else _moment(since)
    if follow:
        # one document per event: there is no end at which to close a list
        client.follow_events(
            lambda event: out.result(event, lambda shown: [_line(shown)]),
            event_type=event_type,
            model_id=model_id,
            since=begin,
            on_gap=lambda gap: out.note(
                f"The server's store ends before event {gap.asked_after}: an older backup was "
                f"restored. Going on after event {gap.goes_on_after}."
            ),
            on_connection=lambda up: out.note(
                "The server is back." if up else "The server is away; waiting for it."
            ),
        )
    page = client.events(event_type=event_type, model_id=model_id, since=begin, **paging)
    out.result(page, _listing)
    if not page.data:
        out.note("No event matches.")


def _moment(text: str) -> str:
    """ISO 8601 of a time, or of how long ago it is.

    Raises:
        click.UsageError: it is neither.
    """
    if ago := _AGO.fullmatch(text):
        passed = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return (datetime.now(timezone.utc) - passed).isoformat()
    try:
        value = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise click.UsageError(
            f"--since {text}: write a time such as 2026-01-31T12:00:00Z, or 30m, 2h, 7d."
        ) from None
    return (value if value.tzinfo else value.astimezone()).isoformat()


def _listing(page: EventPage) -> Iterable[Block]:
    yield from (_line(event) for event in reversed(page.data))
    place = page.pagination
    if place is not None and place.page < place.total_pages:
        yield f"Page {place.page} of {place.total_pages}; earlier ones with --page {place.page + 1}"


def _line(event: Event) -> str:
    payload = dict(event.payload)
    model_id = payload.pop("model_id", "-")
    more = " ".join(f"{name}={_shown(value)}" for name, value in payload.items())
    return one_line(f"{moment(event.timestamp)}  {event.event_type}  {model_id}  {more}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(document(value)).decode()
