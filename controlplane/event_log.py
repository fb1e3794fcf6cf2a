"""Reading the event store: pages for people, a cursor for programs, a wake-up for followers.

Events are numbered by `sequence` in the order of their commits. A follower keeps the number of the
last event that it has seen and asks for those after it, so that nothing is lost or told twice, no
matter how often it is cut off; the bus only tells it when asking is worth while.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import ValidationFailed
from controlplane.events import DomainEvent
from controlplane.moments import from_text, to_text
from controlplane.paging import Page, page_faults

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from sqlite_utils import Database

    from controlplane.events import EventBus

# Events that one round of a follower takes: a resumed stream of thousands must not hold the loop.
BATCH = 100
# One event in so many: where fewer match, their own index is the shorter way.
_SPARSE = 50
_MAX_NUMBER = 2**63 - 1  # SQLite's integers
_LENGTH = 255


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it was stored: the envelope of domain §6.1 and its place in the store.

    Attributes:
        sequence: the cursor; grows with every event, never used twice.
        version: of the payload's schema.
    """

    sequence: int
    event_id: str
    event_type: str
    aggregate_id: str
    aggregate_type: str
    payload: dict[str, Any]
    timestamp: datetime
    version: int


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events; a field that is None lets all pass.

    Attributes:
        event_type: a type such as `model.loaded`, or the beginning of types: `model.*`.
        since, until: from, and up to but not including, this moment.
    """

    event_type: str | None = None
    aggregate_type: str | None = None
    aggregate_id: str | None = None
    model_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class EventLog:
    """What has happened, out of the store; `close` ends all followers."""

    def __init__(self, db: Database, bus: EventBus) -> None:
        self._db = db
        self._waiting: set[asyncio.Event] = set()
        self._closed = False
        bus.subscribe(DomainEvent, self._wake)

    def page(self, wanted: EventFilter, *, page: int = 1, page_size: int = 20) -> Page[StoredEvent]:
        """A page of events, the latest first.

        Raises:
            ValidationFailed: naming each argument that breaks a rule.
        """
        _check(wanted, page=page, page_size=page_size)
        where, params = _conditions(wanted)
        total: int = self._db.execute(
            f"SELECT count(*) FROM event_store {where}", params
        ).fetchone()[0]
        if total > self.last() // _SPARSE:
            # Many match, so the latest are found soon from the end; the index of the types would
            # collect them all and sort them first.
            where = where.replace("event_type ", "+event_type ")
        rows = self._rows(
            f"{where} ORDER BY sequence DESC LIMIT ? OFFSET ?",
            [*params, page_size, (page - 1) * page_size],
        )
        return Page(
            items=rows,
            page=page,
            page_size=page_size,
            total_items=total,
        )

    def after(self, sequence: int, wanted: EventFilter, *, limit: int = BATCH) -> list[StoredEvent]:
        """At most `limit` events that follow the one of that number, the earliest first.

        Raises:
            ValidationFailed: as `page`.
        """
        _check(wanted, page_size=limit, after=sequence)
        where, params = _conditions(wanted, sequence)
        return list(self._rows(f"{where} ORDER BY sequence LIMIT ?", [*params, limit]))

    def last(self) -> int:
        """Number of the latest event; 0 when there is none."""
        return int(self._db.execute("SELECT max(sequence) FROM event_store").fetchone()[0] or 0)

    async def follow(
        self, sequence: int, wanted: EventFilter, *, idle_seconds: float
    ) -> AsyncGenerator[list[StoredEvent], None]:
        """Events after that number as they come, in batches, until `close`.

        An empty batch says that nothing came for `idle_seconds`.
        """
        woken = asyncio.Event()
        self._waiting.add(woken)
        try:
            while not self._closed:
                # before reading: what is written while we read must wake us again
                woken.clear()
                found = self.after(sequence, wanted)
                if found:
                    sequence = found[-1].sequence
                    yield found
                    # full batches one after the other would leave the loop to nobody else
                    await asyncio.sleep(0)
                elif not await _within(woken, idle_seconds):
                    yield []
        finally:
            self._waiting.discard(woken)

    def close(self) -> None:
        """End all followers; those that come later end at once."""
        self._closed = True
        self._wake(None)

    def _wake(self, _: DomainEvent | None) -> None:
        for woken in self._waiting:
            woken.set()

    def _rows(self, tail: str, params: list[Any]) -> tuple[StoredEvent, ...]:
        return tuple(
            _event(row) for row in self._db.query(f"SELECT * FROM event_store {tail}", params)
        )


async def _within(woken: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(woken.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def _event(row: Mapping[str, Any]) -> StoredEvent:
    fields = {name: row[name] for name in StoredEvent.__struct_fields__}
    fields |= {"payload": json.loads(row["payload"]), "timestamp": from_text(row["timestamp"])}
    return StoredEvent(**fields)


def _conditions(wanted: EventFilter, after: int | None = None) -> tuple[str, list[Any]]:
    conditions: list[tuple[str, Any]] = []
    if after is not None:
        conditions.append(("sequence > ?", after))
    if wanted.event_type is not None:
        conditions += _of_type(wanted.event_type)
    if wanted.aggregate_type is not None:
        conditions.append(("aggregate_type = ?", wanted.aggregate_type))
    if wanted.aggregate_id is not None:
        conditions.append(("aggregate_id = ?", wanted.aggregate_id))
    if wanted.model_id is not None:  # as the index of m0004 spells it
        conditions.append(("json_extract(payload, '$.model_id') = ?", wanted.model_id))
    if wanted.since is not None:
        conditions.append(("timestamp >= ?", to_text(wanted.since)))
    if wanted.until is not None:
        conditions.append(("timestamp < ?", to_text(wanted.until)))
    if not conditions:
        return "", []
    where = " AND ".join(condition for condition, _ in conditions)
    return f"WHERE {where}", [value for _, value in conditions]


def _of_type(text: str) -> list[tuple[str, Any]]:
    if not text.endswith("*"):
        return [("event_type = ?", text)]
    beginning = text[:-1]
    # The range that the index can answer, which LIKE with its folded cases cannot.
    return [("event_type >= ?", beginning), ("event_type < ?", beginning + "\U0010ffff")]


def _check(wanted: EventFilter, *, page: int = 1, page_size: int, after: int = 0) -> None:
    errors = page_faults(page, page_size)
    if not 0 <= after <= _MAX_NUMBER:
        errors["after"] = ["must be 0 or more: the sequence of an event"]
    kind = wanted.event_type
    if kind is not None and (not 0 < len(kind) <= _LENGTH or "*" in kind[:-1]):
        errors["event_type"] = ["must be a type such as model.loaded, or a beginning: model.*"]
    if wanted.since and wanted.until and wanted.since >= wanted.until:
        errors["until"] = ["must be later than since"]
    if errors:
        raise ValidationFailed(errors)
