"""Watching a real server: states, events, metrics and top, over HTTP and as a user runs them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.cli import exits
from controlplane.client import ModelMoraApiError, ModelMoraClient
from tests.models import tiny_bert
from tests.programs import program
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.client_types import Event

pytestmark = [pytest.mark.triton, pytest.mark.torch]

MODEL = "tests/watched"
PROGRAM = [sys.executable, "-m", "controlplane"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with a model, on a port that it has again after a restart."""
    home = tmp_path_factory.mktemp("watching")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = Service(home, PORT=str(port)).start()
    try:
        with running.client() as client:
            client.install(MODEL, source_url=tiny_bert(home / "tiny").as_uri(), timeout=120)
        yield running
    finally:
        running.end()


@pytest.fixture
def client(service: Service) -> Iterator[ModelMoraClient]:
    with service.client() as talking:
        if talking.model_status(MODEL).state == "loaded":
            talking.unload(MODEL)
        yield talking


class Followed:
    """Events as a thread hears them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    @property
    def types(self) -> list[str]:
        return [event.event_type for event in self.events]

    def wait_for(self, event_type: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: event_type in self.types, 60), self.types


@contextmanager
def following(url: str, **filters: Any) -> Iterator[Followed]:
    followed = Followed()
    client = ModelMoraClient(url)

    def follow() -> None:
        try:
            client.lifecycle_events(followed, **filters)
        except Exception:  # noqa: BLE001 the client is closed at the end
            return

    with ModelMoraClient(url) as asking:
        filters.setdefault("after", asking.lifecycle().last_event)
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    yield followed
    client.close()


def samples(client: ModelMoraClient) -> dict[tuple[str, str], float]:
    """Samples by name and model id."""
    return {
        (sample.name, sample.labels.get("model_id", "")): sample.value
        for family in text_string_to_metric_families(client.metrics().decode())
        for sample in family.samples
    }


def test_states_and_events_of_a_life(service: Service, client: ModelMoraClient) -> None:
    before = client.model_status(MODEL)
    assert (before.state, before.active_requests) == ("unloaded", 0)
    assert (before.estimated_memory_mb or 0) > 0
    with following(service.url, model_id=MODEL) as followed:
        client.embed(MODEL, "the cat")
        client.embed(MODEL, "the cat")
        status = client.model_status(MODEL)
        client.unload(MODEL)
        followed.wait_for("model.unloaded")
    assert followed.types == [
        *("model.load.requested", "model.loaded"),
        *("model.unload.requested", "model.unloaded"),
    ]
    assert status.state == "loaded"
    assert status.memory_source == "measured"
    assert status.measured_memory_mb == status.memory_usage_mb
    assert status.loads is not None
    assert status.loads.count >= 1
    assert (status.loads.last_seconds or 0) > 0
    assert status.cache_hits >= 1
    assert status.cache_misses >= 1
    assert status.state_since == followed.events[1].timestamp
    after = client.model_status(MODEL)
    assert (after.state, after.last_unload_reason) == ("unloaded", "manual")
    assert after.memory_source == "last_measured"


def test_the_manager_s_view_and_the_metrics_agree(client: ModelMoraClient) -> None:
    client.embed(MODEL, "the cat")
    shown, found = client.lifecycle(), samples(client)
    assert [model.model_id for model in shown.models] == [MODEL]
    assert shown.memory.models == 1
    assert shown.memory.used_mb > 0
    assert shown.memory.free_mb == pytest.approx(
        shown.memory.budget_mb - shown.memory.used_mb, abs=0.2
    )
    assert (shown.waiting, shown.waiting_count) == ([], 0)
    assert shown.triton["state"] == "ready"
    assert found["modelmora_model_cache_hits_total", MODEL] == shown.models[0].cache_hits
    assert found["modelmora_model_cache_misses_total", MODEL] == shown.models[0].cache_misses
    assert found["modelmora_model_load_duration_seconds_count", MODEL] >= 1
    assert found["modelmora_model_healthy", MODEL] == 1
    used = found["modelmora_memory_used_bytes", ""] / 2**20
    assert used == pytest.approx(shown.memory.used_mb, rel=0.5)
    assert client.status().queue_depth["medium_priority"] == 0


def test_a_failed_load_is_shown_with_its_reason(service: Service, client: ModelMoraClient) -> None:
    (weights,) = service.model_repository.glob("tests--watched/*/model.onnx")
    aside = weights.rename(weights.with_suffix(".aside"))
    weights.write_bytes(b"no weights today")
    try:
        with following(service.url) as followed:
            with pytest.raises(ModelMoraApiError):
                client.embed(MODEL, "the cat")
            followed.wait_for("model.load.failed")
        status = client.model_status(MODEL)
        assert status.state == "failed"
        assert status.retry_at is not None
        assert status.loads is not None
        reason = status.loads.last_failure or ""
        assert "model.onnx" in reason
        assert reason[:60] in run_top(service, "--once").stdout
    finally:
        aside.replace(weights)
    client.load(MODEL)
    assert client.model_status(MODEL).state == "loaded"


def run_top(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, "top", *arguments, "--url", service.url],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done


def test_top_once(service: Service, client: ModelMoraClient) -> None:
    client.embed(MODEL, "the cat")
    (line,) = run_top(service, "--once", "--json").stdout.splitlines()
    shown = json.loads(line)
    (row,) = shown["models"]
    assert (row["model_id"], row["state"]) == (MODEL, "loaded")
    assert row["p95_ms"] > 0
    assert shown["memory"]["models"] == 1
    assert shown["events"][-1]["event_type"] == "model.loaded"
    text = run_top(service, "--once").stdout
    assert text.startswith("ModelMora")
    assert MODEL in text
    assert "\x1b" not in text


def test_triton_s_death_is_shown_and_counted(service: Service, client: ModelMoraClient) -> None:
    client.embed(MODEL, "the cat")
    restarts = client.lifecycle().triton["restarts"]
    with following(service.url) as followed:
        triton = next(p for p in service.family() if p.name() == "tritonserver")
        triton.kill()
        followed.wait_for("triton.restored")
        client.embed(MODEL, "the cat")
    assert followed.types[0] == "triton.lost"
    shown = client.lifecycle()
    assert shown.triton["restarts"] == restarts + 1
    assert shown.triton["process_id"] != triton.pid
    assert samples(client)["modelmora_triton_restarts_total", ""] == restarts + 1


def test_followers_and_top_outlive_a_restart_of_the_server(service: Service) -> None:
    """The last test: the server's life ends in it, and another begins."""
    with service.client() as client:
        client.embed(MODEL, "the cat")  # loads it, if that is still to be done
        last = client.lifecycle().last_event
        loads = len(client.events(event_type="model.loaded", page_size=100).data)
    options = {
        "env": service.environment() | {"MODELMORA_URL": service.url},
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": service.home,
    }  # fmt: skip
    # what has happened is told first, so that it is seen to follow before the server goes away
    follow = ["events", "--follow", "--type", "model.loaded", "--since", "1h"]
    with (
        program([*PROGRAM, "top", "--json", "--interval", "0.2"], **options) as top,
        program([*PROGRAM, *follow], **options) as events,
    ):
        until(top, lambda shown: shown["connected"])
        assert all("model.loaded" in events.stdout.readline() for _ in range(loads))
        service.stop()
        until(top, lambda shown: not shown["connected"])
        assert events.stderr.readline() == "The server is away; waiting for it.\n"
        service.start()
        until(top, lambda shown: shown["connected"])
        with service.client() as client:
            client.wait_until_ready()
            client.embed(MODEL, "the cat")
        assert "model.loaded" in events.stdout.readline()
        until(top, lambda shown: [m["state"] for m in shown["models"]] == ["loaded"])
        for process in (top, events):
            process.send_signal(signal.SIGINT)
        _, errors = events.communicate(timeout=60)
        top.communicate(timeout=60)
    assert "The server is back." in errors
    assert (top.returncode, events.returncode) == (exits.INTERRUPTED, exits.INTERRUPTED)
    with service.client() as client:
        told = client.events(after=last, page_size=100).data
    assert told
    assert [event.sequence for event in told] == sorted({event.sequence for event in told})


def until(process: subprocess.Popen[str], wanted: Any) -> None:
    """Read its JSON lines until one is as wanted; pytest's timeout is the deadline."""
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(json.loads(line)):
            return
    raise AssertionError("it ended")
