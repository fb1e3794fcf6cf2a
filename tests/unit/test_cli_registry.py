"""The commands events and db, and the client's side of events."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import filelock
import pytest
import structlog

from controlplane.cli import exits
from controlplane.database_file import STEP_NAMES, inspect
from controlplane.db import open_db
from controlplane.events import EventBus
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore
from tests.programs import program
from tests.rest_server import RestServer, stored_events
from tests.unit.test_cli_commands import modelmora  # noqa: F401 the fixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.test_cli_commands import Result

EVENTS = "/api/v1/events"
STREAM = "/api/v1/events/stream"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RestServer]:
    running = RestServer()
    monkeypatch.setenv("MODELMORA_URL", running.url)
    yield running
    running.close()


def event(sequence: int, event_type: str = "model.loaded") -> dict[str, Any]:
    return {
        "sequence": sequence,
        "event_id": "e",
        "event_type": event_type,
        "aggregate_id": "m",
        "aggregate_type": "model_lifecycle_manager",
        "payload": {"model_id": "org/tiny", "version": "main", "memory_mb": 1.5, "x": ["a"]},
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "version": 1,
    }


def page(*events: dict[str, Any], total_pages: int = 1) -> tuple[int, Any]:
    place = {"page": 1, "page_size": 50, "total_items": 9, "total_pages": total_pages}
    return 200, {"data": list(events), "pagination": place}


# -- events ----------------------------------------------------------------------------------------


def test_events_are_shown_with_the_latest_last(server: RestServer, modelmora: Any) -> None:  # noqa: F811
    server.set("GET", EVENTS, page(event(2, "model.unloaded"), event(1), total_pages=2))
    shown: Result = modelmora("events", "--type", "model.*", "--model", "org/tiny")
    lines = shown.out.splitlines()
    assert lines[0] == (
        '2026-01-02 03:04:05Z model.loaded org/tiny version=main memory_mb=1.5 x=["a"]'
    )
    assert "model.unloaded" in lines[1]
    assert "--page 2" in lines[2]
    (request,) = server.requests
    assert request.query == {
        "event_type": "model.*", "model_id": "org/tiny", "page": "1", "page_size": "50",
    }  # fmt: skip


def test_events_as_json(server: RestServer, modelmora: Any) -> None:  # noqa: F811
    server.set("GET", EVENTS, page(event(1)))
    shown: Result = modelmora("events", "--json")
    assert shown.json["data"] == [event(1) | {"timestamp": "2026-01-02T03:04:05.678901Z"}]


@pytest.mark.parametrize("since", ["2h", "30m", "7d", "10s", "2026-01-31T12:00:00Z", "2026-01-31"])
def test_since_is_a_time_or_how_long_ago(server: RestServer, modelmora: Any, since: str) -> None:  # noqa: F811
    server.set("GET", EVENTS, page())
    shown: Result = modelmora("events", "--since", since)
    if since == "2026-01-31":
        assert shown.code == exits.USAGE
        assert "30m, 2h, 7d" in shown.err
    else:
        assert shown.code == 0
        assert shown.err == "No event matches.\n"
        assert "T" in server.requests[0].query["since"]


def test_following_shows_each_event_once_until_it_is_interrupted(server: RestServer) -> None:
    server.set("GET", EVENTS, page(event(3)))
    server.set(
        "GET",
        STREAM,
        (200, stored_events(event(4), event(5))),
        (200, stored_events()),
        (200, stored_events(event(6))),
        (200, stored_events()),
    )
    with program(
        [sys.executable, "-m", "controlplane", "events", "--follow", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        numbers = [json.loads(process.stdout.readline())["sequence"] for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert numbers == [4, 5, 6]
    assert process.returncode == exits.INTERRUPTED
    assert errors.strip() == "Interrupted."
    asked = [r.query["after"] for r in server.requests if r.path == STREAM]
    assert asked[:3] == ["3", "5", "5"]


# -- db --------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    register(tmp_path / "data", "a/b")
    return tmp_path / "data"


def register(data: Path, *names: str) -> None:
    db = open_db(data / "modelmora.db")
    for name in names:
        ModelStore(db, EventBus()).register(NewModel(model_id=name, task_type="txt2embed"))
    db.close()


def test_backup_check_restore(data: Path, tmp_path: Path, modelmora: Any) -> None:  # noqa: F811
    where, copy = ["--data-dir", str(data)], str(tmp_path / "copy.db")
    made: Result = modelmora("db", "backup", copy, *where)
    assert made.code == 0
    assert f"{copy} is written" in made.out
    again: Result = modelmora("db", "backup", copy, *where)
    assert (again.code, again.out) == (exits.CONFLICT, "")
    assert modelmora("db", "check", copy, "--json").json["models"] == 1
    register(data, "c/d")
    back: Result = modelmora("db", "restore", copy, *where, "--json")
    assert back.code == 0
    assert inspect(data / "modelmora.db").damage == ()
    assert modelmora("db", "check", *where, "--json").json["models"] == 1
    assert modelmora("db", "check", back.json["replaced"], "--json").json["models"] == 2


def test_a_backup_without_a_name_goes_to_the_data_directory(data: Path, modelmora: Any) -> None:  # noqa: F811
    made: Result = modelmora("db", "backup", "--data-dir", str(data), "--json")
    assert made.json["path"].startswith(str(data / "backups" / "manual-"))


def test_restore_and_downgrade_wait_for_the_server_s_end(data: Path, modelmora: Any) -> None:  # noqa: F811
    where = ["--data-dir", str(data)]
    copy: Result = modelmora("db", "backup", *where, "--json")
    with filelock.FileLock(data / "server.lock"):
        for command in (["restore", copy.json["path"]], ["downgrade", "--to", "m0001_registry"]):
            refused: Result = modelmora("db", *command, *where)
            assert refused.code == exits.CONFLICT
            assert "stop it" in refused.err
        assert modelmora("db", "check", *where).code == 0
        assert modelmora("db", "backup", *where).code == 0


def test_what_is_not_sound_is_told_with_exit_code_1(data: Path, modelmora: Any) -> None:  # noqa: F811
    (data / "bad.db").write_bytes(b"no database" * 100)
    shown: Result = modelmora("db", "check", str(data / "bad.db"))
    assert shown.code == exits.FAILED
    assert "Problem: " in shown.out
    assert "NOT sound" in shown.out
    refused: Result = modelmora("db", "restore", str(data / "bad.db"), "--data-dir", str(data))
    assert refused.code == exits.FAILED
    assert refused.err.startswith("Error: The database")
    missing: Result = modelmora("db", "check", str(data / "nowhere.db"))
    assert (missing.code, "There is no database" in missing.err) == (exits.FAILED, True)


def test_downgrade_does_what_the_refusal_of_a_newer_schema_says(data: Path, modelmora: Any) -> None:  # noqa: F811
    where = ["--data-dir", str(data)]
    shown: Result = modelmora("db", "downgrade", "--to", STEP_NAMES[0], *where, "--json")
    assert shown.json["undone"] == list(reversed(STEP_NAMES[1:]))
    assert inspect(data / "modelmora.db").steps == STEP_NAMES[:1]
    warned: Result = modelmora("db", "check", *where)
    assert warned.code == 0
    assert "the next start will apply" in warned.out
    wrong: Result = modelmora("db", "downgrade", "--to", "m9", *where)
    assert "m0001_registry" in wrong.err
