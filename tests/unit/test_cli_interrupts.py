"""Ctrl-C where Python drops it: the commands notice all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.cli import exits, interrupts
from controlplane.cli.main import run
from tests import rest_server as rest
from tests.rest_server import OPERATION_ID, OPERATION_PATH, RestServer

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLLOW = ["operations", "show", OPERATION_ID, "--follow"]
RUNNING = rest.operation("running", phase="exporting", step="export", message="to ONNX")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RestServer]:
    running = RestServer()
    monkeypatch.setenv("MODELMORA_URL", running.url)
    yield running
    running.close()


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Ctrl-C comes in a destructor when progress is shown; holds what Python said of it."""

    class Dying:
        def __del__(self) -> None:
            # Not `raise_signal`: before Python 3.12 its handler may run when the test is over, and
            # end the process.
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, None)

    said: list[Any] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "unraisablehook", lambda about: said.append(about.exc_type))
    monkeypatch.setattr("controlplane.cli.progress._Lines.show", lambda *_: Dying() and None)
    yield said
    signal.signal(signal.SIGINT, before)


def test_while_asking_again_and_again(server: RestServer, dropped: list[Any]) -> None:
    server.set("GET", f"{OPERATION_PATH}/events", (404, rest.error("NOT_FOUND", "None.")))
    # one more answer, and it would be over
    server.set("GET", OPERATION_PATH, (200, RUNNING), (200, rest.operation()))
    assert run(FOLLOW) == exits.INTERRUPTED
    assert dropped == [KeyboardInterrupt]


def test_while_hearing_events(server: RestServer, dropped: list[Any]) -> None:
    told = rest.events(RUNNING, rest.operation())
    server.set("GET", f"{OPERATION_PATH}/events", (200, told))
    assert run(FOLLOW) == exits.INTERRUPTED
    assert dropped == [KeyboardInterrupt]


def test_who_caught_it_may_go_on(
    server: RestServer, dropped: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server.set("GET", f"{OPERATION_PATH}/events", (404, rest.error("NOT_FOUND", "None.")))
    server.set("GET", OPERATION_PATH, (200, RUNNING), (200, rest.operation()))
    server.set("GET", rest.OPERATIONS_PATH, (200, rest.page(RUNNING)))
    server.set("GET", rest.MODEL_PATH, (200, rest.model("exporting")))
    server.set("POST", f"{rest.MODEL_PATH}/download", (202, rest.operation("pending")))
    # after it, the server is asked what goes on
    assert run(["install", rest.MINILM]) == exits.INTERRUPTED
    assert f"modelmora operations cancel {OPERATION_ID}" in capsys.readouterr().err
    assert dropped == [KeyboardInterrupt]


def test_the_handler_is_given_back() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.remembered():
            assert signal.getsignal(signal.SIGINT) is interrupts.pressed
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        thread = threading.Thread(target=interrupts.remembered().__enter__)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_background_job_goes_on_ignoring_it(server: RestServer) -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from controlplane.cli import interrupts\n"
        "with interrupts.remembered(): signal.raise_signal(signal.SIGINT); interrupts.check()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {})
