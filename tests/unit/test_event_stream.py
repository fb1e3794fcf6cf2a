"""Streams of stored events over a real connection: resumed, filtered, gapped, read slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from controlplane.db import append_event, open_db, transaction
from controlplane.events import (
    DomainEvent,
    EventBus,
    ModelLoaded,
    ModelRegistered,
    ModelUnloadRequested,
)
from controlplane.gateway.rest import create_app, events
from controlplane.gateway.services import Services
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlite_utils import Database

LIFECYCLE = "/api/v1/lifecycle/events"
ALL = "/api/v1/events/stream"


@dataclass
class Stored:
    """A running server with an event store to write to."""

    url: str
    port: int
    db: Database
    bus: EventBus
    store: ModelStore
    server: uvicorn.Server

    def write(self, *told: DomainEvent) -> None:
        with transaction(self.db):
            for event in told:
                append_event(self.db, event)
        for event in told:
            self.bus.publish(event)


@pytest.fixture
async def stored() -> AsyncIterator[Stored]:
    bus, db = EventBus(), open_db(":memory:")
    store = ModelStore(db, bus)
    nothing: Any = None
    app = create_app(
        Services(
            settings=Settings(), store=store, installer=nothing, scheduler=nothing,
            inference=nothing, server=nothing, client=nothing, bus=bus, locking=nothing,
            lock_activities=nothing, render_metrics=nothing, started_at=0.0, version="0",
        )
    )  # fmt: skip
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await eventually(lambda: server.started)
    port = listening.getsockname()[1]
    yield Stored(f"http://127.0.0.1:{port}", port, db, bus, store, server)
    store.event_log.close()
    server.should_exit = True
    await serving
    await app.close()
    listening.close()
    db.close()


@dataclass
class Reader:
    """Reads a stream in the background; what it has seen, and whether it has ended."""

    url: str
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    comments: int = 0
    begun: bool = False
    task: asyncio.Task[None] | None = None

    def __enter__(self) -> Reader:
        self.task = asyncio.create_task(self._read())
        return self

    def __exit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()

    @property
    def numbers(self) -> list[int]:
        return [data["sequence"] for _, data in self.seen if "sequence" in data]

    async def _read(self) -> None:
        async with (
            httpx.AsyncClient(timeout=30) as http,
            http.stream("GET", self.url, params=self.params, headers=self.headers) as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            async for line in answer.aiter_lines():
                self.begun = True
                self.comments += line.startswith(":")
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    self.seen.append((name, json.loads(line[6:])))


def registered(model_id: str = "a/b") -> ModelRegistered:
    return ModelRegistered(model_id=model_id, task_type="txt2embed", version="main")


def loaded(model_id: str = "a/b") -> ModelLoaded:
    return ModelLoaded(model_id=model_id, version="main", memory_mb=1.0, load_seconds=1.0)


def leaving(model_id: str = "a/b") -> ModelUnloadRequested:
    return ModelUnloadRequested(model_id=model_id, version="main", reason="manual")


async def test_the_lifecycle_alone_as_it_happens(stored: Stored) -> None:
    with Reader(stored.url + LIFECYCLE) as reader, Reader(stored.url + ALL) as everything:
        await eventually(lambda: reader.begun and everything.begun)
        stored.write(registered(), loaded())
        stored.write(leaving())
        await eventually(lambda: len(everything.seen) == 3)
        await eventually(lambda: len(reader.seen) == 2)
    assert [name for name, _ in reader.seen] == ["model.loaded", "model.unload.requested"]
    assert reader.numbers == [2, 3]
    assert reader.seen[0][1]["payload"]["model_id"] == "a/b"


async def test_filters(stored: Stored) -> None:
    stored.write(loaded("a/b"), loaded("c/d"), leaving("c/d"))
    with (
        Reader(stored.url + LIFECYCLE, {"after": 0, "model_id": "c/d"}) as one,
        Reader(stored.url + LIFECYCLE, {"after": 0, "event_type": "model.unload.*"}) as other,
    ):
        await eventually(lambda: one.numbers == [2, 3] and other.numbers == [3])


async def test_since_a_moment(stored: Stored) -> None:
    stored.write(loaded())
    late = loaded("c/d")
    stored.write(late)
    params = {"since": late.timestamp.isoformat()}
    with Reader(stored.url + ALL, params) as reader:
        await eventually(lambda: reader.numbers == [2])


async def test_last_event_id_wins_and_nothing_is_lost(stored: Stored) -> None:
    stored.write(loaded(), leaving(), loaded())
    with Reader(stored.url + LIFECYCLE, {"after": 0}, {"Last-Event-ID": "1"}) as reader:
        await eventually(lambda: reader.numbers == [2, 3])
        stored.write(leaving())
        await eventually(lambda: reader.numbers == [2, 3, 4])


async def test_a_cursor_beyond_the_end_is_told_of_the_gap(stored: Stored) -> None:
    stored.write(loaded())
    with Reader(stored.url + LIFECYCLE, headers={"Last-Event-ID": "70"}) as reader:
        await eventually(lambda: reader.seen)
        stored.write(leaving())
        await eventually(lambda: len(reader.seen) == 2)
    assert reader.seen[0] == ("gap", {"asked_after": 70, "goes_on_after": 1})
    assert reader.numbers == [2]


@pytest.mark.parametrize(
    ("params", "headers", "name"),
    [
        ({"after": -1}, {}, "after"),
        ({"event_type": "a*b"}, {}, "event_type"),
        ({}, {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ({}, {"Last-Event-ID": "9" * 40}, "Last-Event-ID"),
    ],
)
async def test_wrong_arguments_are_refused(
    stored: Stored, params: dict[str, Any], headers: dict[str, str], name: str
) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(stored.url + LIFECYCLE, params=params, headers=headers)
    assert answer.status_code == 400
    assert name in answer.json()["error"]["details"]["fields"]


async def test_a_silent_stream_shows_that_it_is_alive(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.05)
    with Reader(stored.url + LIFECYCLE) as reader:
        await eventually(lambda: reader.comments >= 3)


async def test_the_stream_ends_with_the_service(stored: Stored) -> None:
    with Reader(stored.url + LIFECYCLE) as reader:
        await eventually(lambda: reader.begun)
        stored.store.event_log.close()
        assert reader.task is not None
        await asyncio.wait_for(reader.task, 10)


async def test_a_slow_reader_gets_everything_and_holds_up_nobody(stored: Stored) -> None:
    """Nothing is kept for it in memory: what it has not taken yet is in the store."""
    count = 4000
    stored.write(*(loaded(f"org/{'x' * 60}{n}") for n in range(count)))
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", stored.port))
    slow.sendall(f"GET {LIFECYCLE}?after=0 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    slow.setblocking(False)
    with Reader(stored.url + LIFECYCLE, {"after": 0}) as quick:
        await eventually(lambda: len(quick.seen) == count)  # while the other has read nothing
        stored.write(leaving())
        await eventually(lambda: len(quick.seen) == count + 1)
    connections: Any = stored.server.server_state.connections
    assert max(each.transport.get_write_buffer_size() for each in connections) < 200_000
    loop = asyncio.get_running_loop()
    text, last = b"", b"id: %d\n" % (count + 1)
    while last not in text:
        text += await asyncio.wait_for(loop.sock_recv(slow, 1 << 20), 30)
    slow.close()
    numbers = [int(line[4:]) for line in text.splitlines() if line.startswith(b"id: ")]
    assert numbers == list(range(count + 2))  # 0 is where it began
