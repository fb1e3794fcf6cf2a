"""`modelmora top` and `status --watch`: figures out of counters, and how they look."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from controlplane.cli import exits
from controlplane.cli.top_figures import SORTS, Counters, Histogram, Rates, read_counters
from controlplane.cli.top_view import screen, shortened
from controlplane.client_types import Event, Lifecycle
from tests import rest_server as rest
from tests.programs import program
from tests.rest_server import MINILM, RestServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.cli.top_figures import Top

NOW = datetime(2026, 1, 2, 3, 7, 5, tzinfo=timezone.utc)


def model(model_id: str, state: str = "loaded", **more: Any) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "version": "main",
        "state": state,
        "memory_usage_mb": 100.0,
        "memory_source": "measured",
        "last_used_at": (NOW - timedelta(seconds=90)).isoformat(),
        **more,
    }


LIFECYCLE = rest.LIFECYCLE | {
    "models": [
        rest.LOADED,
        model("org/loading-one", "loading", memory_usage_mb=500.0, memory_source="declared"),
        model("a-rather-long-organisation/a-rather-long-model-name-v2", "unloading"),
        model(
            "org/broken",
            "failed",
            memory_usage_mb=0.0,
            retry_at=(NOW + timedelta(seconds=12)).isoformat(),
            health_status={"healthy": False, "error_message": "No module named 'x'\n"},
        ),
    ],
    "waiting": [
        {**rest.LIFECYCLE["waiting"][0], "waited_seconds": seconds} for seconds in (3.5, 1.0)
    ],
    "waiting_count": 7,
    "queue_depth": {"high_priority": 2, "medium_priority": 5},
}


def event(event_type: str, seconds: int, **payload: Any) -> Event:
    return Event(
        sequence=seconds,
        event_id="e",
        event_type=event_type,
        payload=payload,
        timestamp=NOW - timedelta(seconds=seconds),
    )


EVENTS = [
    event("triton.restored", 40),
    event("model.loaded", 30, model_id=MINILM, load_seconds=0.84, memory_mb=205.4),
    event("model.unload.requested", 2, model_id="org/x", reason="lru_eviction"),
    event("model.of.tomorrow", 1, model_id="org/x"),
]


def counters(taken: float, requests: float, errors: float = 0.0, slow: float = 0.0) -> Counters:
    bounds = {0.005: 0.0, 0.01: requests - slow, 1.0: requests, math.inf: requests}
    return Counters(taken, {MINILM: requests}, {MINILM: errors}, {MINILM: Histogram(bounds)})


def refresh(lifecycle: dict[str, Any] = LIFECYCLE, order: str = "memory") -> Top:
    shown = msgspec.convert(lifecycle, Lifecycle)
    rates = Rates()
    rates.top("http://h", shown, counters(10.0, 100.0), EVENTS, order)
    return rates.top("http://h", shown, counters(12.0, 300.0, 1.0, slow=20.0), EVENTS, order)


def rendered(top: Top, width: int, height: int | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False, color_system=None)
    console.print(screen(top, width=width, height=height))
    return out.getvalue()


def test_figures_of_a_refresh() -> None:
    top = refresh()
    assert top.requests_per_second == 100.0
    by_id = {row.model.model_id: row for row in top.models}
    row = by_id[MINILM]
    assert (row.requests_per_second, row.errors_per_second) == (100.0, 0.5)
    assert row.p50_ms == pytest.approx(7.78, abs=0.01)  # 100 of 180 requests up to 10 ms
    assert row.p95_ms == pytest.approx(505.0)  # half of those between 10 ms and 1 s
    assert by_id["org/broken"].p50_ms is None


def test_the_first_refresh_has_no_rates_but_latencies_of_all_time() -> None:
    shown = msgspec.convert(LIFECYCLE, Lifecycle)
    top = Rates().top("http://h", shown, counters(10.0, 100.0), [], "memory")
    assert top.requests_per_second is None
    row = next(row for row in top.models if row.model.model_id == MINILM)
    assert row.requests_per_second is None
    assert row.p95_ms is not None


def test_counters_that_begin_anew_make_no_negative_rates() -> None:
    shown, rates = msgspec.convert(LIFECYCLE, Lifecycle), Rates()
    rates.top("http://h", shown, counters(10.0, 1000.0), [], "memory")
    top = rates.top("http://h", shown, counters(12.0, 40.0), [], "memory")
    assert top.requests_per_second == 20.0
    row = next(row for row in top.models if row.model.model_id == MINILM)
    assert row.requests_per_second == 20.0
    assert row.p50_ms == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("memory", "org/loading-one"),
        ("last-used", MINILM),
        ("requests", MINILM),
        ("name", "a-rather-long-organisation/a-rather-long-model-name-v2"),
    ],
)
def test_orders(order: str, first: str) -> None:
    assert refresh(order=order).models[0].model.model_id == first
    assert set(SORTS) == {"memory", "last-used", "requests", "name"}


def test_counters_are_read_from_the_exposition() -> None:
    text = "\n".join(
        [
            "# HELP modelmora_requests_total x",
            "# TYPE modelmora_requests_total counter",
            'modelmora_requests_total{model_id="a/b",status="success"} 5.0',
            'modelmora_requests_total{model_id="a/b",status="error"} 2.0',
            'modelmora_requests_created{model_id="a/b",status="error"} 1.7e9',
            'modelmora_inference_duration_seconds_bucket{le="0.1",model_id="a/b",task_type="t"} 4',
            'modelmora_inference_duration_seconds_bucket{le="+Inf",model_id="a/b",task_type="t"} 5',
            'modelmora_inference_duration_seconds_bucket{le="0.1",model_id="a/b",task_type="u"} 1',
            'modelmora_inference_duration_seconds_bucket{le="+Inf",model_id="a/b",task_type="u"} 1',
        ]
    )
    found = read_counters(text, 1.0)
    assert (found.requests, found.errors) == ({"a/b": 7.0}, {"a/b": 2.0})
    assert found.durations["a/b"].counts == {0.1: 5.0, math.inf: 6.0}
    assert read_counters("", 1.0).requests == {}


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.floats(0, 1))
def test_a_quantile_lies_within_the_bounds_and_grows(steps: list[int], fraction: float) -> None:
    total, counts = 0, {}
    for index, step in enumerate(steps):
        total += step
        counts[float(index + 1)] = float(total)
    counts[math.inf] = float(total)
    histogram = Histogram(counts)
    found = histogram.quantile(fraction)
    if total == 0:
        assert found is None
        return
    assert found is not None
    assert 0 <= found <= len(steps)
    assert found <= (histogram.quantile(1.0) or 0)


# -- looks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_looks(width: int) -> None:
    golden = Path(__file__).parent / "golden" / f"top-{width}.txt"
    assert rendered(refresh(), width) == golden.read_text(encoding="utf-8")


def test_nothing_in_memory() -> None:
    empty = LIFECYCLE | {"models": [], "waiting": [], "waiting_count": 0, "queue_depth": {}}
    shown = rendered(refresh(empty), 80)
    assert "No model is in memory; the first request for one loads it." in shown
    assert "WAITING" not in shown


def test_what_does_not_fit_is_counted() -> None:
    many = LIFECYCLE | {"models": [model(f"org/m{n:02}") for n in range(40)]}
    lines = rendered(refresh(many), 80, height=20).splitlines()
    assert len(lines) <= 20
    assert any("more lines" in line for line in lines)
    assert any("org/m00" in line for line in lines)


@given(st.integers(20, 200), st.integers(5, 60))
def test_it_fits_into_any_terminal(width: int, height: int) -> None:
    text = screen(refresh(), width=width, height=height)
    lines = text.plain.splitlines()
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


@given(
    st.from_regex(r"[A-Za-z0-9_.-]{1,40}/[A-Za-z0-9_.-]{1,60}", fullmatch=True), st.integers(1, 120)
)
def test_a_shortened_id_fits(model_id: str, width: int) -> None:
    short = shortened(model_id, width)
    assert cell_len(short) <= max(width, 1) or cell_len(model_id) <= width
    if cell_len(model_id) <= width:
        assert short == model_id


def test_the_name_survives_longer_than_the_organisation() -> None:
    assert shortened(MINILM, 26) == "sentence…/all-MiniLM-L6-v2"
    assert shortened(MINILM, 12) == "…iniLM-L6-v2"


# -- the commands --------------------------------------------------------------------------------

PROGRAM = [sys.executable, "-m", "controlplane"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RestServer]:
    running = RestServer()
    running.set("GET", "/api/v1/events", (200, {"data": [msgspec.to_builtins(EVENTS[1])]}))
    monkeypatch.setenv("MODELMORA_URL", running.url)
    yield running
    running.close()


def test_once_as_json(server: RestServer) -> None:
    done = subprocess.run(
        [*PROGRAM, "top", "--once", "--json"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    shown = json.loads(line)
    assert shown["connected"] is True
    assert shown["models"][0]["model_id"] == MINILM
    assert shown["models"][0]["loads"]["count"] == 3
    assert shown["waiting_count"] == 1
    assert shown["events"][0]["event_type"] == "model.loaded"
    assert server.requests[-1].query["aggregate_type"] == "model_lifecycle_manager"


def test_once_as_text_has_no_colours(server: RestServer) -> None:
    done = subprocess.run([*PROGRAM, "top", "--once"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert MINILM in done.stdout
    assert "loaded in 0.8 s, 205 MB" in done.stdout


def test_without_a_server_it_ends(server: RestServer) -> None:
    url = ["--url", "http://127.0.0.1:9"]
    for command in (["top"], ["top", "--once"], ["status", "--watch"]):
        done = subprocess.run(
            [*PROGRAM, *command, *url], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == exits.UNREACHABLE
        assert done.stderr.startswith("Error: No answer from ModelMora")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["top"], ["status", "--watch"]])
def test_a_json_document_per_refresh_also_while_the_server_is_away(
    server: RestServer, command: list[str]
) -> None:
    gone = rest.error("SERVICE_UNAVAILABLE", "Not now.")
    path = "/api/v1/lifecycle" if command == ["top"] else "/api/v1/status"
    answer = rest.LIFECYCLE if command == ["top"] else rest.STATUS
    server.set("GET", path, (200, answer), (503, gone), (200, answer))
    with program(
        [*PROGRAM, *command, "--json", "--interval", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        first, away, back = (json.loads(process.stdout.readline()) for _ in range(3))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (exits.INTERRUPTED, "Interrupted.")
    assert away["connected"] is False
    assert away["error"] == "Not now."
    assert {"memory", "triton"} <= first.keys() & back.keys()


def on_a_terminal(server: RestServer, until: str, **environment: str) -> tuple[int, str]:
    """Run top on a terminal of 80 columns until it showed `until`, then Ctrl-C."""
    main, other = pty.openpty()
    with program(
        [*PROGRAM, "top", "--interval", "0.1"],
        stdin=other, stdout=other, stderr=other, start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"} | environment,
    ) as process:  # fmt: skip
        os.close(other)
        shown, deadline = "", time.monotonic() + 60
        while until not in shown:
            assert time.monotonic() < deadline, shown[-2000:]
            shown += os.read(main, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while True:
            try:
                chunk = os.read(main, 65536)
            except OSError:  # nobody has the terminal any more
                break
            shown += chunk.decode(errors="replace")
        os.close(main)
        return process.wait(60), shown


def test_a_terminal_is_redrawn_and_given_back(server: RestServer) -> None:
    code, shown = on_a_terminal(server, "EVENTS")
    assert code == exits.INTERRUPTED
    assert "\x1b[?1049h" in shown  # a screen of its own
    assert "\x1b[?1049l" in shown
    assert "\x1b[32m" in shown  # colours
    assert "Traceback" not in shown


def test_no_color(server: RestServer) -> None:
    code, shown = on_a_terminal(server, "EVENTS", NO_COLOR="1")
    assert code == exits.INTERRUPTED
    assert "\x1b[32m" not in shown


def test_an_absent_server_is_shown_with_what_was_last_seen(server: RestServer) -> None:
    gone = rest.error("SERVICE_UNAVAILABLE", "Not now.")
    server.set("GET", "/api/v1/lifecycle", (200, rest.LIFECYCLE), (503, gone))
    code, shown = on_a_terminal(server, "Trying again")
    assert code == exits.INTERRUPTED
    assert "all-MiniLM-L6-v2" in shown.partition("Not now.")[2]
