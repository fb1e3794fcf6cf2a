"""The client's view of what is in memory: its state now, and its events as they happen.

Operations are described as in `client_operations.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from controlplane.client_operations import events
from controlplane.client_sse import EventReader, Listen
from controlplane.client_steps import Pause, Steps, ask, given, model_path
from controlplane.client_types import (
    Event,
    Gap,
    Lifecycle,
    LoadedModel,
    ModelMoraApiError,
    ServerUnreachable,
)

_STREAM = "/api/v1/events/stream"
_LIFECYCLE_STREAM = "/api/v1/lifecycle/events"
_LIFECYCLE = "model_lifecycle_manager"
_RECONNECT_SECONDS = 0.5
_POLL_SECONDS = 0.5

OnEvent = Callable[[Event], None]
OnGap = Callable[[Gap], None]
OnConnection = Callable[[bool], None]


def lifecycle() -> Steps[Lifecycle]:
    """Budget, models in memory with all that is known of them, waiting requests, Triton."""
    return ask("GET", "/api/v1/lifecycle", Lifecycle)


def model_status(model_id: str, version: str | None = None) -> Steps[LoadedModel]:
    """Where one model stands; told of `version`, else of the one that is in memory or current."""
    path, params = model_path(model_id, "/status"), given(version=version)
    return ask("GET", path, LoadedModel, params=params)


def metrics() -> Steps[bytes]:
    """The server's metrics in Prometheus' text format, UTF-8."""
    return ask("GET", "/metrics", bytes)


def follow_events(
    on_event: OnEvent,
    *,
    event_type: str | None = None,
    model_id: str | None = None,
    since: str | None = None,
    after: int | None = None,
    on_gap: OnGap | None = None,
    on_connection: OnConnection | None = None,
) -> Steps[None]:
    """Call `on_event` for every event as it happens; never returns.

    It begins after the event `after`, at the time `since`, or with what comes. A server that is
    restarted meanwhile is waited for; nothing is left out or told twice. Where the stream does not
    come through (a proxy that collects it), the store is asked twice a second instead.

    Args:
        on_gap: called when the server's store ends before the cursor: an older backup was restored.
        on_connection: called with False when the server goes away, with True when it is back.
    """
    filters = given(event_type=event_type, model_id=model_id, since=since)
    return _follow(_STREAM, filters, after, on_event, on_gap, on_connection)


def lifecycle_events(
    on_event: OnEvent,
    *,
    model_id: str | None = None,
    event_type: str | None = None,
    after: int | None = None,
    on_gap: OnGap | None = None,
    on_connection: OnConnection | None = None,
) -> Steps[None]:
    """As `follow_events`, of loads, unloads, health and Triton only."""
    filters = given(event_type=event_type, model_id=model_id)
    return _follow(_LIFECYCLE_STREAM, filters, after, on_event, on_gap, on_connection)


def _follow(
    path: str,
    filters: dict[str, Any],
    after: int | None,
    on_event: OnEvent,
    on_gap: OnGap | None,
    on_connection: OnConnection | None,
) -> Steps[None]:
    if after is None:
        after = 0 if "since" in filters else (yield from _latest())
    reader = EventReader(after, on_event, on_gap)
    up = _Connection(on_connection)
    while True:
        reader.begin()
        address = f"{path}?{urlencode(filters | {'after': reader.after})}"
        try:
            yield Listen(path=address, take=lambda line: up.is_up() or reader.take(line))
        except ServerUnreachable as error:
            if error.timed_out and not reader.heard:
                break  # connected, and not even the first line came: it is being collected
            up.is_down()
        except ModelMoraApiError as error:
            if error.code != "UNEXPECTED_RESPONSE":
                raise
            break
        yield Pause(_RECONNECT_SECONDS)
    more = {"aggregate_type": _LIFECYCLE} if path == _LIFECYCLE_STREAM else {}
    yield from _poll(filters | more, reader.after, on_event, up)


def _poll(filters: dict[str, Any], after: int, on_event: OnEvent, up: _Connection) -> Steps[None]:
    while True:
        try:
            found = yield from events(**filters, after=after, page_size=100)
        except ServerUnreachable:
            up.is_down()
            yield Pause(1.0)
            continue
        up.is_up()
        for event in found.data:
            on_event(event)
        after = after if found.next_after is None else found.next_after
        if not found.data:
            yield Pause(_POLL_SECONDS)


class _Connection:
    """Tells of changes only."""

    def __init__(self, listener: OnConnection | None) -> None:
        self._listener = listener
        self._up = True

    def is_up(self) -> bool:
        """Note that the server answers; always False, for use in an `or`."""
        self._note(True)
        return False

    def is_down(self) -> None:
        self._note(False)

    def _note(self, up: bool) -> None:
        if up != self._up:
            self._up = up
            if self._listener is not None:
                self._listener(up)


def _latest() -> Steps[int]:
    page = yield from events(page_size=1)
    return page.data[0].sequence if page.data else 0
