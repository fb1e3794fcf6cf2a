"""The registry over REST as several clients see it: ETags, events, streams, backups; real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from controlplane.database_file import inspect
from controlplane.db import open_db
from controlplane.gateway.rest import events as event_routes
from controlplane.registry.files import Progress
from controlplane.settings import Settings
from tests.gateway import _http_server, make_ready
from tests.rest_services import rest_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from controlplane.gateway.services import Services

MODEL = "/api/v1/models/org/tiny"
NEW = {"model_id": "org/tiny", "task_type": "txt2embed"}


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    settings = Settings(data_dir=tmp_path / "data", max_request_bytes=4096)
    with contextlib.closing(open_db(settings.database)) as db:
        found = rest_services(db, tmp_path, settings)
        yield found
        await found.scheduler.close()


@pytest.fixture
async def http(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with _http_server(services) as port:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            yield client
        services.store.event_log.close()


async def etag_of(http: httpx.AsyncClient) -> str:
    return (await http.get(MODEL)).headers["ETag"]


def code(response: httpx.Response) -> str:
    return response.json()["error"]["code"]


# -- ETags -----------------------------------------------------------------------------------------


async def test_a_model_has_a_strong_tag_that_changes_with_it(http, services) -> None:
    await http.post("/api/v1/models", json=NEW)
    first = await etag_of(http)
    assert first.startswith('"')
    assert await etag_of(http) == first
    changed = await http.put(MODEL, json={"description": "new"})
    assert changed.headers["ETag"] == await etag_of(http) != first


async def test_the_tag_changes_with_a_version_too(http, services) -> None:
    await http.post("/api/v1/models", json=NEW)
    seen = {await etag_of(http)}
    services.store.add_version("org/tiny", "v1")
    seen.add(await etag_of(http))
    make_ready(services.store, "org/tiny", "v1")
    seen.add(await etag_of(http))
    services.store.remove_version("org/tiny", "v1")
    seen.add(await etag_of(http))
    assert len(seen) == 4


async def test_what_is_known_already_is_not_sent_again(http, services) -> None:
    await http.post("/api/v1/models", json=NEW)
    tag = await etag_of(http)
    for header in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = await http.get(MODEL, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == tag
    assert (await http.get(MODEL, headers={"If-None-Match": '"other"'})).status_code == 200
    services.installer.running["org/tiny"] = Progress(
        phase="downloading", step="", fraction=0.5, message=""
    )
    assert (await http.get(MODEL, headers={"If-None-Match": tag})).status_code == 200


async def test_a_stale_tag_changes_nothing(http, services) -> None:
    await http.post("/api/v1/models", json=NEW)
    tag = await etag_of(http)
    await http.put(MODEL, json={"description": "first"}, headers={"If-Match": tag})
    for header in (tag, f"W/{await etag_of(http)}", '"other"'):
        late = await http.put(MODEL, json={"description": "late"}, headers={"If-Match": header})
        assert (late.status_code, code(late)) == (412, "PRECONDITION_FAILED")
        gone = await http.delete(MODEL, headers={"If-Match": header})
        assert (gone.status_code, code(gone)) == (412, "PRECONDITION_FAILED")
    assert services.store.get("org/tiny").description == "first"


async def test_the_present_tag_and_any_tag_let_a_change_pass(http) -> None:
    await http.post("/api/v1/models", json=NEW)
    headers = {"If-Match": f'"other", {await etag_of(http)}'}
    assert (await http.put(MODEL, json={"description": "a"}, headers=headers)).status_code == 200
    headers = {"If-Match": "*"}
    assert (await http.put(MODEL, json={"description": "b"}, headers=headers)).status_code == 200
    headers = {"If-Match": await etag_of(http)}
    assert (await http.delete(MODEL, headers=headers)).status_code == 204


@pytest.mark.parametrize("header", ["unquoted", '"a", b', '"', ""])
async def test_a_malformed_tag_is_named(http, header: str) -> None:
    await http.post("/api/v1/models", json=NEW)
    answer = await http.put(MODEL, json={}, headers={"If-Match": header})
    assert (answer.status_code, code(answer)) == (400, "VALIDATION_ERROR")
    assert "If-Match" in answer.json()["error"]["details"]["fields"]


@pytest.mark.parametrize("way", ["If-Match", "version_number"])
async def test_of_concurrent_changes_one_wins_and_none_is_lost(http, services, way: str) -> None:
    await http.post("/api/v1/models", json=NEW)
    tag, number = await etag_of(http), services.store.get("org/tiny").version

    async def change(name: str) -> httpx.Response:
        body: dict[str, Any] = {"description": name}
        if way == "If-Match":
            return await http.put(MODEL, json=body, headers={"If-Match": tag})
        return await http.put(MODEL, json=body | {"version_number": number})

    answers = await asyncio.gather(*(change(f"by {n}") for n in range(10)))
    winners = [answer for answer in answers if answer.status_code == 200]
    refused = {(a.status_code, code(a)) for a in answers if a.status_code != 200}
    assert len(winners) == 1
    assert refused == {
        (412, "PRECONDITION_FAILED") if way == "If-Match" else (409, "CONCURRENT_MODIFICATION")
    }
    assert services.store.get("org/tiny").description == winners[0].json()["description"]
    assert services.store.get("org/tiny").version == number + 1


async def test_everybody_who_reads_again_gets_his_change_in(http, services) -> None:
    await http.post("/api/v1/models", json=NEW)

    async def add(name: str) -> None:
        while True:
            read = await http.get(MODEL)
            config = read.json()["config"] | {name: 1}
            headers = {"If-Match": read.headers["ETag"]}
            if (await http.put(MODEL, json={"config": config}, headers=headers)).is_success:
                return

    await asyncio.gather(*(add(f"n{n}") for n in range(8)))
    assert set(services.store.get("org/tiny").config) == {f"n{n}" for n in range(8)}


# -- events ----------------------------------------------------------------------------------------


async def test_events_come_in_pages_and_by_the_cursor(http) -> None:
    await http.post("/api/v1/models", json=NEW)
    await http.put(MODEL, json={"description": "x"})
    page = (await http.get("/api/v1/events", params={"page_size": 2})).json()
    assert [event["event_type"] for event in page["data"]] == [
        "model.updated",
        "model.version.added",
    ]
    assert page["pagination"] == {"page": 1, "page_size": 2, "total_items": 3, "total_pages": 2}
    assert page["data"][0]["payload"] == {"model_id": "org/tiny", "fields": ["description"]}
    assert page["data"][0]["version"] == 1
    since = (await http.get("/api/v1/events", params={"after": 1})).json()
    assert [event["sequence"] for event in since["data"]] == [2, 3]
    assert since["next_after"] == 3
    assert "pagination" not in since
    end = (await http.get("/api/v1/events", params={"after": 3})).json()
    assert end == {"data": [], "next_after": 3}


async def test_events_are_filtered(http) -> None:
    await http.post("/api/v1/models", json=NEW)
    await http.post("/api/v1/models", json=NEW | {"model_id": "org/other"})

    async def count(**params: str) -> int:
        answer = await http.get("/api/v1/events", params=params)
        return answer.json()["pagination"]["total_items"]

    assert await count(event_type="model.version.*") == 2
    assert await count(model_id="org/other") == 2
    assert await count(since="2026-01-01T00:00:00Z", until="2026-01-02T00:00:00+01:00") == 0
    assert await count(aggregate_id="nobody") == 0


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-01-01T00:00:00"}, "until"),
        ({"event_type": "*.x"}, "event_type"),
        ({"page_size": "0"}, "page_size"),
        ({"after": "-1"}, "after"),
        ({"after": "x"}, "after"),
        ({"after": "1", "page": "2"}, "page"),
        ({"after": str(2**70)}, "after"),
    ],
)
async def test_wrong_questions_are_named(http, params: dict[str, str], field: str) -> None:
    answer = await http.get("/api/v1/events", params=params)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["details"]["fields"]


@contextlib.asynccontextmanager
async def stream(http: httpx.AsyncClient, **more: Any) -> AsyncIterator[AsyncIterator[str]]:
    async with http.stream("GET", "/api/v1/events/stream", **more) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("retry:")
        yield lines


async def ids(lines: AsyncIterator[str], count: int) -> list[int]:
    found: list[int] = []
    async for line in lines:
        if line.startswith("id: "):
            found.append(int(line[4:]))
            if len(found) == count:
                break
    return found


async def test_a_stream_brings_what_happens(http) -> None:
    async with stream(http) as lines:
        assert await ids(lines, 1) == [0]
        await http.post("/api/v1/models", json=NEW)
        assert [await anext(lines) for _ in range(2)] == ["", "id: 1"]
        assert await anext(lines) == "event: model.registered"
        assert '"model_id":"org/tiny"' in await anext(lines)
        assert await ids(lines, 1) == [2]


async def test_a_stream_that_was_cut_off_goes_on_where_it_was(http) -> None:
    await http.post("/api/v1/models", json=NEW)
    async with stream(http, headers={"Last-Event-ID": "1"}, params={"after": 0}) as lines:
        assert await ids(lines, 2) == [1, 2]
    async with stream(http, params={"after": 0, "event_type": "model.version.*"}) as lines:
        assert await ids(lines, 2) == [0, 2]


async def test_a_cursor_from_the_future_means_from_now_on(http) -> None:
    async with stream(http, headers={"Last-Event-ID": "999"}) as lines:
        assert await ids(lines, 1) == [0]
        await http.post("/api/v1/models", json=NEW)
        assert await ids(lines, 1) == [1]


async def test_a_silent_stream_is_kept_alive(http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_routes, "KEEP_ALIVE_SECONDS", 0.01)
    async with stream(http) as lines:
        async for line in lines:
            if line.startswith(":"):
                break


async def test_a_stream_ends_when_the_server_stops(http, services) -> None:
    async with stream(http) as lines:
        services.store.event_log.close()
        assert [line async for line in lines] == ["id: 0", ""]


async def test_who_leaves_a_stream_is_forgotten(http, services) -> None:
    from tests.waiting import eventually

    async with stream(http):
        await eventually(lambda: len(services.store.event_log._waiting) == 1)
    await eventually(lambda: services.store.event_log._waiting == set())


@pytest.mark.parametrize("header", ["x", "-1", "1" * 30])
async def test_a_wrong_last_event_id_is_named(http, header: str) -> None:
    answer = await http.get("/api/v1/events/stream", headers={"Last-Event-ID": header})
    assert answer.status_code == 400
    assert "Last-Event-ID" in answer.json()["error"]["details"]["fields"]


# -- backups ---------------------------------------------------------------------------------------


async def test_a_backup_is_made_while_serving(http, services) -> None:
    await http.post("/api/v1/models", json=NEW)
    answer = await http.post("/api/v1/db/backup", json={"name": "friday"})
    assert answer.status_code == 201
    body = answer.json()
    target = services.settings.data_dir / "backups" / "friday.db"
    assert body["path"] == str(target)
    assert (body["models"], body["events"]) == (1, 2)
    assert body["schema"] == inspect(target).steps[-1]
    again = await http.post("/api/v1/db/backup", json={"name": "friday"})
    assert (again.status_code, code(again)) == (409, "BACKUP_EXISTS")
    assert (await http.post("/api/v1/db/backup")).status_code == 201
    assert len(list(target.parent.iterdir())) == 2


@pytest.mark.parametrize("name", ["../x", "", "before-y", "a b"])
async def test_a_backup_leads_nowhere_else(http, name: str) -> None:
    answer = await http.post("/api/v1/db/backup", json={"name": name})
    assert answer.status_code == 400
    assert "name" in answer.json()["error"]["details"]["fields"]


async def test_reading_by_a_cursor_from_the_future_comes_back_to_the_present(http) -> None:
    await http.post("/api/v1/models", json=NEW)
    answer = await http.get("/api/v1/events", params={"after": 999})
    assert answer.json() == {"data": [], "next_after": 2}
