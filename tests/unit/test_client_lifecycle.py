"""The client's side of the lifecycle: its views, and following events through all mishaps."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.client import (
    ModelMoraApiError,
    ServerUnreachable,
)
from controlplane.client_sse import EventReader
from tests import rest_server as rest
from tests.client_calls import CALLS
from tests.rest_server import MINILM, MODEL_PATH, RestServer, stored_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controlplane.client_types import Event, Gap

EVENTS = "/api/v1/events"
STREAM = "/api/v1/events/stream"
LIFECYCLE_STREAM = "/api/v1/lifecycle/events"


class Enough(Exception):
    """Ends a follower."""


@pytest.fixture
def server() -> Iterator[RestServer]:
    running = RestServer()
    yield running
    running.close()


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def event(sequence: int) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "event_id": "e",
        "event_type": "model.loaded",
        "payload": {"model_id": "org/tiny"},
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "version": 1,
    }


def stored(*events: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"data": list(events), "next_after": events[-1]["sequence"] if events else None}


class Seen(list[int]):
    """Takes events; has had enough after so many."""

    def __init__(self, enough: int) -> None:
        self._enough = enough

    def __call__(self, event: Event) -> None:
        self.append(event.sequence)
        if len(self) == self._enough:
            raise Enough


def asked(server: RestServer, path: str) -> list[dict[str, str]]:
    return [request.query for request in server.requests if request.path == path]


# -- views -------------------------------------------------------------------------------------


def test_views(server: RestServer, call: Callable[..., Any]) -> None:
    shown = call(server.url, "lifecycle")
    assert shown.memory.budget_mb == rest.LIFECYCLE["memory"]["budget_mb"]
    assert shown.models[0].model_id == MINILM
    assert shown.waiting[0].waits_for == "room"
    status = call(server.url, "model_status", MINILM, "v1")
    assert (status.model_id, status.loads.count) == (MINILM, 3)
    assert asked(server, f"{MODEL_PATH}/status") == [{"version": "v1"}]
    assert b"modelmora_requests_total" in call(server.url, "metrics")


# -- following ---------------------------------------------------------------------------------


def test_a_follower_begins_where_it_is_told(server: RestServer, call: Callable[..., Any]) -> None:
    server.set("GET", STREAM, (200, stored_events(event(8))))
    server.set("GET", EVENTS, stored(event(41)))
    for more in (
        {"after": 7},
        {"since": "2026-01-31T12:00:00Z"},
        {"event_type": "model.*", "model_id": MINILM},
    ):
        with pytest.raises(Enough):
            call(server.url, "follow_events", Seen(1), **more)
    assert asked(server, STREAM) == [
        {"after": "7"},
        {"since": "2026-01-31T12:00:00Z", "after": "0"},
        {"event_type": "model.*", "model_id": MINILM, "after": "41"},
    ]


def test_lifecycle_events_have_a_stream_of_their_own(
    server: RestServer, call: Callable[..., Any]
) -> None:
    server.set("GET", LIFECYCLE_STREAM, (200, stored_events(event(8))))
    with pytest.raises(Enough):
        call(server.url, "lifecycle_events", Seen(1), after=7, model_id=MINILM)
    assert asked(server, LIFECYCLE_STREAM) == [{"model_id": MINILM, "after": "7"}]


def test_following_begins_with_a_server(call: Callable[..., Any]) -> None:
    with pytest.raises(ServerUnreachable):
        call("http://127.0.0.1:9", "follow_events", Seen(1))


def test_a_wrong_filter_is_told(server: RestServer, call: Callable[..., Any]) -> None:
    server.set("GET", STREAM, (400, rest.error("VALIDATION_ERROR", "Wrong.")))
    with pytest.raises(ModelMoraApiError, match="Wrong"):
        call(server.url, "follow_events", Seen(1), after=0, event_type="a*b")


def test_what_a_cut_connection_left_behind_comes_again_once(
    server: RestServer, call: Callable[..., Any]
) -> None:
    whole = bytes(stored_events(event(4), event(5)))
    cut = rest.EventStream(whole[: whole.rindex(b"data:") + 20])  # in the middle of event 5
    server.set("GET", STREAM, (200, cut), (200, stored_events(event(5), event(6))))
    seen = Seen(3)
    with pytest.raises(Enough):
        call(server.url, "follow_events", seen, after=3)
    assert seen == [4, 5, 6]
    assert [query["after"] for query in asked(server, STREAM)] == ["3", "4"]


def test_a_gap_is_told_and_passed_over(server: RestServer, call: Callable[..., Any]) -> None:
    gap = b'event: gap\ndata: {"asked_after": 90, "goes_on_after": 5}\n\n'
    server.set("GET", STREAM, (200, rest.EventStream(gap)), (200, stored_events(event(6))))
    gaps: list[Gap] = []
    with pytest.raises(Enough):
        call(server.url, "follow_events", Seen(1), after=90, on_gap=gaps.append)
    assert [(g.asked_after, g.goes_on_after) for g in gaps] == [(90, 5)]
    assert [query["after"] for query in asked(server, STREAM)] == ["90", "5"]


def test_the_store_is_asked_where_the_stream_does_not_come_through(
    server: RestServer, call: Callable[..., Any]
) -> None:
    server.set("GET", STREAM, (200, {"not": "a stream"}))
    server.set("GET", EVENTS, stored(event(4)), stored(event(5), event(6)))
    seen = Seen(3)
    with pytest.raises(Enough):
        call(server.url, "follow_events", seen, after=3, model_id=MINILM)
    assert seen == [4, 5, 6]
    assert [q["after"] for q in asked(server, EVENTS)] == ["3", "4"]
    assert {q["model_id"] for q in asked(server, EVENTS)} == {MINILM}


def test_a_server_that_goes_away_is_waited_for(call: Callable[..., Any]) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + bytes(body)
        for body in (stored_events(event(4)), stored_events(event(5)))
    ]
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    changes: list[bool] = []
    down = threading.Event()

    def serve() -> None:
        answer_one(listening, answers[0])
        listening.close()
        assert down.wait(30)
        with socket.create_server(("127.0.0.1", port)) as again:
            answer_one(again, answers[1])

    def changed(up: bool) -> None:
        changes.append(up)
        if not up:
            down.set()

    thread = threading.Thread(target=serve)
    thread.start()
    seen = Seen(2)
    with pytest.raises(Enough):
        call(f"http://127.0.0.1:{port}", "follow_events", seen, after=3, on_connection=changed)
    thread.join(30)
    assert seen == [4, 5]
    assert changes == [False, True]


def answer_one(listening: socket.socket, answer: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_lines_of_any_stream_are_read(server: RestServer) -> None:
    told: list[int] = []
    reader = EventReader(0, lambda event: told.append(event.sequence))
    reader.begin()
    data = json.dumps(event(3))
    half = len(data) // 2
    # a field without a space, a comment, an unknown field, data on two lines
    space = data.index(" ", half)
    for line in (
        *(":comment", "id:3", "event:model.loaded", "colour: red"),
        *(f"data:{data[:space]}", f"data:{data[space:]}", ""),
    ):
        assert reader.take(line) is False
    assert (told, reader.after) == ([3], 3)
