"""The commands on operations and catalog files against recorded answers; Ctrl-C on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.cli import exits
from controlplane.cli.main import run
from tests import rest_server as rest
from tests.programs import program
from tests.rest_server import (
    MINILM,
    MODEL_PATH,
    OPERATION_ID,
    OPERATION_PATH,
    OPERATIONS_PATH,
    RestServer,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

RUNNING = rest.operation(
    "running", phase="downloading", fraction=0.25, message="w: 1.0 of 4.0 MB", rate=2.0 * 2**20
)
CTRL_C = b"\x03"
FAILED = rest.operation("failed", error={"code": "EXPORT_FAILED", "message": "Too odd."})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RestServer]:
    running = RestServer()
    monkeypatch.setenv("MODELMORA_URL", running.url)
    monkeypatch.delenv("MODELMORA_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    yield running
    running.close()


@pytest.fixture
def listed(tmp_path: Path, server: RestServer) -> RestServer:
    """A server, and a file that lists one model."""
    (tmp_path / "modelmora.yaml").write_text(f"models: [{{name: {MINILM}, preload: true}}]")
    return server


def result(*actions: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "model_id": MINILM,
        "version": "main",
        "actions": list(actions),
        "status": status,
        **more,
    }


def answers(*results: dict[str, Any], in_sync: bool = False) -> tuple[int, dict[str, Any]]:
    return 200, {"dry_run": False, "in_sync": in_sync, "results": list(results)}


# -- operations ----------------------------------------------------------------------------------


def test_list_shows_how_far_they_are(
    server: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.set("GET", OPERATIONS_PATH, (200, rest.page(RUNNING, total_pages=2)))
    assert run(["operations", "list", "--model", MINILM, "--status", "active"]) == 0
    out = capsys.readouterr().out
    assert "downloading 25%" in out
    assert "Page 1 of 2; go on with --page 2" in out
    assert server.requests[0].query["status"] == "active"
    server.set("GET", OPERATIONS_PATH, (200, rest.page()))
    assert run(["operations", "list"]) == 0
    assert capsys.readouterr().err == "No operations yet.\n"


def test_show_tells_why_it_failed(server: RestServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.set("GET", OPERATION_PATH, (200, FAILED | {"attempts": 2}))
    assert run(["operations", "show", OPERATION_ID]) == 0
    out = capsys.readouterr().out
    assert "Too odd. (EXPORT_FAILED)" in out
    assert "attempts   2" in out


def test_show_follows_to_the_end(server: RestServer, capsys: pytest.CaptureFixture[str]) -> None:
    told = rest.events(RUNNING, rest.operation())
    server.set("GET", f"{OPERATION_PATH}/events", (200, told))
    assert run(["operations", "show", OPERATION_ID, "--follow"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "Downloading: 25% w: 1.0 of 4.0 MB\n"
    assert "succeeded" in captured.out


def test_what_has_ended_cannot_be_cancelled(
    server: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.set("DELETE", OPERATION_PATH, (409, rest.error("OPERATION_FINISHED", "It has ended.")))
    assert run(["operations", "cancel", OPERATION_ID]) == exits.CONFLICT
    assert capsys.readouterr().err == "Error: It has ended.\n"


# -- Ctrl-C on a terminal ------------------------------------------------------------------------


def interrupted_on_a_terminal(server: RestServer, reply: bytes) -> tuple[int, str]:
    """Run an install on a terminal, press Ctrl-C, and reply to the question that comes."""
    server.set("GET", MODEL_PATH, (200, rest.model("exporting")))
    server.set("POST", f"{MODEL_PATH}/download", (202, RUNNING))
    server.set("GET", f"{OPERATION_PATH}/events", (404, rest.error("NOT_FOUND", "None.")))
    server.set("GET", OPERATION_PATH, (200, RUNNING))
    server.set("GET", OPERATIONS_PATH, (200, rest.page(RUNNING)))
    terminal, inside = pty.openpty()
    with program(
        [sys.executable, "-m", "controlplane", "install", MINILM],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    ) as process:
        os.close(inside)
        server.wait_for("GET", OPERATION_PATH)
        shown = _conversation(process, terminal, reply)
        os.close(terminal)
        return process.wait(60), shown


def _conversation(process: subprocess.Popen[bytes], terminal: int, reply: bytes) -> str:
    """Press Ctrl-C, answer once, and read until the process has ended."""
    shown, asked = b"", False
    answered = 0.0
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = time.monotonic()
        # What is typed before the question waits for it is thrown away; people type again.
        if asked and now > answered + 2:
            answered = now
            if reply == CTRL_C:
                process.send_signal(signal.SIGINT)
            else:
                os.write(terminal, reply)
        if not select.select([terminal], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        asked = asked or b"[y/N]" in shown
    return shown.decode()


@pytest.mark.parametrize(("reply", "cancels"), [(b"y\n", True), (b"\n", False), (CTRL_C, False)])
def test_ctrl_c_asks_whether_to_cancel(
    server: RestServer, monkeypatch: pytest.MonkeyPatch, reply: bytes, cancels: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    code, shown = interrupted_on_a_terminal(server, reply)
    assert code == exits.INTERRUPTED
    assert ("DELETE" in [request.method for request in server.requests]) == cancels
    assert (f"The install of {MINILM}@main is cancelled." in shown) == cancels
    assert (f"modelmora operations cancel {OPERATION_ID}" in shown) != cancels
    assert "Traceback" not in shown


# -- catalog files -------------------------------------------------------------------------------


def test_sync_waits_and_reports(listed: RestServer, capsys: pytest.CaptureFixture[str]) -> None:
    listed.set(
        "POST",
        "/api/v1/catalog/sync",
        answers(result("register", "install", status="installing", operation=RUNNING)),
    )
    told = rest.events(RUNNING, rest.operation())
    listed.set("GET", f"{OPERATION_PATH}/events", (200, told))
    assert run(["catalog", "sync"]) == 0
    captured = capsys.readouterr()
    assert f"{MINILM}@main:\nDownloading: 25%" in captured.err
    assert "register, install  done" in captured.out
    sent = listed.requests[0].body
    entry = {"model_id": MINILM, "preload": True, "pinned": False, "trust_remote_code": False}
    assert sent == {"models": [entry], "dry_run": False}


def test_plain_sync_without_a_lock_installs_what_the_file_lists(
    listed: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    listed.set("POST", "/api/v1/catalog/sync", answers(result("use", status="done")))
    assert run(["sync"]) == 0
    captured = capsys.readouterr()
    assert "installing what modelmora.yaml lists" in captured.err
    assert "main     use   done" in captured.out
    assert run(["sync", "--dry-run"]) == 0
    assert listed.requests[-1].body["dry_run"] is True


def test_sync_makes_versions_current_when_they_are_ready(
    listed: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    listed.set(
        "POST",
        "/api/v1/catalog/sync",
        answers(result("install", "use", status="installing", operation=RUNNING)),
        answers(result("use", status="done")),
    )
    assert run(["catalog", "sync", "--json"]) == 0
    posts = [request for request in listed.requests if request.method == "POST"]
    assert len(posts) == 2
    assert '"status":"done"' in capsys.readouterr().out


def test_a_model_that_fails_is_told_by_the_exit_code(
    listed: RestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    listed.set(
        "POST",
        "/api/v1/catalog/sync",
        answers(result("install", status="installing", operation=RUNNING)),
    )
    listed.set("GET", f"{OPERATION_PATH}/events", (200, rest.events(FAILED)))
    assert run(["catalog", "sync"]) == exits.FAILED
    assert "Too odd." in capsys.readouterr().out
    assert run(["catalog", "sync", "--no-wait"]) == 0
    assert "installing" in capsys.readouterr().out


def test_plan_changes_nothing(listed: RestServer, capsys: pytest.CaptureFixture[str]) -> None:
    status, body = answers(result(status="unchanged"), in_sync=True)
    listed.set("POST", "/api/v1/catalog/sync", (status, body | {"dry_run": True}))
    assert run(["catalog", "plan"]) == 0
    assert "All models are as the file wants them." in capsys.readouterr().out
    assert listed.requests[0].body["dry_run"] is True
    conflict = result(status="failed", message="It is registered otherwise.")
    listed.set("POST", "/api/v1/catalog/sync", answers(conflict))
    assert run(["catalog", "plan"]) == exits.FAILED
