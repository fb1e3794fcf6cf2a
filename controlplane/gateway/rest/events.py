"""Routes of the event store: a page of it, and everything from now on as server-sent events."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream
from msgspec import UNSET, Meta, UnsetType

from controlplane.errors import ValidationFailed
from controlplane.event_log import EventFilter, EventLog, StoredEvent
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import Json, Pagination
from controlplane.gateway.services import GivenServices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TAGS = ["Events"]
# Proxies close what is silent for a minute.
KEEP_ALIVE_SECONDS = 15.0
_RETRY_MS = 2000

Type = Annotated[
    str | None,
    QueryParameter(description="A type, model.loaded, or the beginning of types, `model.*`."),
]
Aggregate = Annotated[
    str | None, QueryParameter(description="Id of the catalog or lifecycle manager.")
]
AggregateType = Annotated[
    str | None, QueryParameter(description="model_catalog, model_lifecycle_manager or model_lock.")
]
ModelName = Annotated[str | None, QueryParameter(description="Only events about this model.")]
Since = Annotated[str | None, QueryParameter(description="From this moment, ISO 8601.")]


class EventBody(msgspec.Struct, kw_only=True):
    """The envelope of an event; `version` is the version of its payload's schema."""

    sequence: Annotated[int, Meta(description="The cursor: grows with every event.")]
    event_id: str
    event_type: str
    aggregate_id: str
    aggregate_type: str
    payload: Json
    timestamp: datetime
    version: int

    @classmethod
    def of(cls, event: StoredEvent) -> EventBody:
        return cls(**msgspec.structs.asdict(event))


class EventsPage(msgspec.Struct, kw_only=True):
    """`pagination` belongs to pages, `next_after` to reading by the cursor."""

    data: list[EventBody]
    pagination: Pagination | UnsetType = UNSET
    next_after: int | UnsetType = UNSET


@get(
    "/api/v1/events",
    operation_id="listEvents",
    summary="Read the event store",
    tags=TAGS,
    responses=failures(400),
)
async def list_events(
    services: GivenServices,
    event_type: Type = None,
    aggregate_id: Aggregate = None,
    aggregate_type: AggregateType = None,
    model_id: ModelName = None,
    since: Since = None,
    until: Annotated[str | None, QueryParameter(description="Up to this moment.")] = None,
    after: Annotated[
        int | None,
        QueryParameter(description="Events after this `sequence`, the earliest first."),
    ] = None,
    page: Annotated[int, QueryParameter(description="From 1; the latest events first.")] = 1,
    page_size: Annotated[int, QueryParameter(description="1 to 100.")] = 20,
) -> EventsPage:
    """What has happened: a page, the latest first; or, with `after`, what came since, in order."""
    wanted = EventFilter(
        event_type=event_type,
        aggregate_id=aggregate_id,
        aggregate_type=aggregate_type,
        model_id=model_id,
        since=_moment("since", since),
        until=_moment("until", until),
    )
    log = services.store.event_log
    if after is not None:
        return _since(log, wanted, after, page, page_size)
    found = log.page(wanted, page=page, page_size=page_size)
    return EventsPage(
        data=[EventBody.of(event) for event in found.items],
        pagination=Pagination.of(found),
    )


def _since(log: EventLog, wanted: EventFilter, after: int, page: int, size: int) -> EventsPage:
    if page != 1:
        raise ValidationFailed.field("page", "has no meaning together with after")
    found = log.after(after, wanted, limit=size)
    return EventsPage(
        data=[EventBody.of(event) for event in found],
        # a cursor from before a backup was restored may lie in the future
        next_after=found[-1].sequence if found else min(after, log.last()),
    )


STREAM_RESPONSES = {
    **failures(400),
    200: ResponseSpec(
        str,
        description="Server-sent events, without end: `id` is the sequence, `event` the type, "
        "`data` the envelope as JSON. An event `gap` says that the cursor lies beyond the end of "
        "the store (a backup was restored): what was between is lost, the stream goes on.",
        media_type="text/event-stream",
        generate_examples=False,
    ),
}
After = Annotated[
    int | None, QueryParameter(description="Begin after this `sequence`; else with what comes.")
]
LastEventId = Annotated[
    str | None,
    HeaderParameter(name="Last-Event-ID", description="Where a client was cut off; wins."),
]


@get(
    "/api/v1/events/stream",
    operation_id="followEvents",
    summary="Follow the event store",
    tags=TAGS,
    responses=STREAM_RESPONSES,
)
async def follow_events(
    services: GivenServices,
    event_type: Type = None,
    aggregate_id: Aggregate = None,
    model_id: ModelName = None,
    since: Since = None,
    after: After = None,
    last_event_id: LastEventId = None,
) -> Stream:
    """Events as they happen. A browser's EventSource that is cut off resumes; nothing is lost."""
    wanted = EventFilter(
        event_type=event_type,
        aggregate_id=aggregate_id,
        model_id=model_id,
        since=_moment("since", since),
    )
    return event_stream(services.store.event_log, wanted, after, last_event_id)


def event_stream(
    log: EventLog, wanted: EventFilter, after: int | None, last_event_id: str | None
) -> Stream:
    """The events of `log` that pass the filter, as server-sent events until `log` is closed.

    The stream holds a cursor and one batch, never a backlog: a reader that is slow is written to as
    fast as it reads, and what it has not read yet is in the store.

    Raises:
        ValidationFailed: naming the argument that is wrong.
    """
    begin = _cursor(after, last_event_id)
    log.after(begin or 0, wanted, limit=1)  # wrong arguments are refused before the stream begins
    return Stream(
        _server_sent(log, begin, wanted),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _server_sent(
    log: EventLog, begin: int | None, wanted: EventFilter
) -> AsyncIterator[bytes]:
    """The stream's text (HTML standard §9.2.6)."""
    latest = log.last()
    first = latest if wanted.since is None else 0
    # A cursor from before a backup was restored may lie in the future: nothing would ever come.
    start = first if begin is None else min(begin, latest)
    yield f"retry: {_RETRY_MS}\nid: {start}\n\n".encode()
    if begin is not None and begin > latest:
        yield b"event: gap\ndata: %s\n\n" % msgspec.json.encode(
            {"asked_after": begin, "goes_on_after": latest}
        )
    async with aclosing(log.follow(start, wanted, idle_seconds=KEEP_ALIVE_SECONDS)) as batches:
        async for batch in batches:
            yield b"".join(map(_message, batch)) if batch else b": still here\n\n"


def _message(event: StoredEvent) -> bytes:
    data = msgspec.json.encode(EventBody.of(event))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.sequence, event.event_type.encode(), data)


def _cursor(after: int | None, last_event_id: str | None) -> int | None:
    if not last_event_id:
        return after
    if not last_event_id.isdecimal() or len(last_event_id) > 19:
        raise ValidationFailed.field("Last-Event-ID", "must be the sequence of an event")
    return int(last_event_id)


def _moment(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        # a '+' of the zone that was not encoded arrives as a space
        value: Any = msgspec.convert(text.replace(" ", "+"), datetime)
    except msgspec.ValidationError:
        value = None
    if value is None or value.tzinfo is None:
        message = "must be a time such as 2026-01-31T12:00:00Z, with its zone"
        raise ValidationFailed.field(name, message)
    return datetime.fromisoformat(value.isoformat())


ROUTES = [list_events, follow_events]
