"""Triton's output: levels, places, texts; and a pipe that can always be let go of."""

from __future__ import annotations

import os

import pytest
import structlog

from controlplane.triton.failures import (
    ModelFailed,
    ModelUnknown,
    QueueFull,
    RequestRejected,
    StubUnhealthy,
    TritonError,
    TritonTimeout,
    TritonUnavailable,
    failure_of,
)
from controlplane.triton.server_log import LogPipe, parse_line
from tests.waiting import eventually

HEAD = "1123 00:58:13.822422 8438 "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'I{HEAD}grpc_server.cc:2558] "Started"', ("info", "grpc_server.cc:2558", "Started")),
        (f'W{HEAD}a.cc:1] "x \\"quoted\\"\\nline 2"', ("warning", "a.cc:1", 'x "quoted"\nline 2')),
        (f"E{HEAD}a.cc:1] no quotes", ("error", "a.cc:1", "no quotes")),
        (f'F{HEAD}a.cc:1] "bad \\q escape"', ("critical", "a.cc:1", "bad \\q escape")),
        (
            "Traceback (most recent call last):",
            ("info", None, "Traceback (most recent call last):"),
        ),
        ("+-----+----+", ("debug", None, "+-----+----+")),
        ("| a   | b  |", ("debug", None, "| a   | b  |")),
        ("Signal (15) received.", ("info", None, "Signal (15) received.")),
    ],
)
def test_lines(line: str, expected: tuple[str, str | None, str]) -> None:
    parsed = parse_line(line)
    assert parsed is not None
    assert (parsed.level, parsed.origin, parsed.text) == expected


@pytest.mark.parametrize("line", ["", "   ", f"I{HEAD}server.cc:604] "])
def test_lines_that_say_nothing(line: str) -> None:
    assert parse_line(line) is None


async def test_pipe_logs_whole_lines_and_the_rest_at_the_end() -> None:
    with structlog.testing.capture_logs() as logs:
        pipe = LogPipe()
        os.write(pipe.write_fd, b"one\ntw")
        await eventually(lambda: len(logs) == 1)
        os.write(pipe.write_fd, "o é\xff\n".encode("latin-1") + f"I{HEAD}h.cc:1] ".encode())
        os.write(pipe.write_fd, b'"Started HTTPService at 127.0.0.1:1"\nrest')
        pipe.close()
    assert [log["event"] for log in logs] == [
        "one",
        "two ��",
        "Started HTTPService at 127.0.0.1:1",
        "rest",
    ]
    assert logs[2]["origin"] == "h.cc:1"
    assert pipe.services == {"HTTPService"}
    assert next(iter(pipe.recent)) == "one"


async def test_pipe_ends_with_its_last_writer() -> None:
    with structlog.testing.capture_logs() as logs:
        pipe = LogPipe()
        os.write(pipe.write_fd, b"last words")
        pipe.close_write_end()
        await eventually(lambda: logs)
        pipe.close()
        pipe.close()
    assert [log["event"] for log in logs] == ["last words"]


async def test_pipe_can_be_closed_while_somebody_holds_the_other_end() -> None:
    pipe = LogPipe()
    held = os.dup(pipe.write_fd)
    pipe.close()
    with pytest.raises(BrokenPipeError):
        os.write(held, b"x")
    os.close(held)


async def test_endless_line_is_cut() -> None:
    with structlog.testing.capture_logs() as logs:
        pipe = LogPipe()
        for _ in range(5):
            os.write(pipe.write_fd, b"x" * 10_000)
            await eventually(lambda: True)
        await eventually(lambda: logs)
        pipe.close()
    assert max(len(log["event"]) for log in logs) <= 16 * 1024


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("UNAVAILABLE", "Request for unknown model: 'x' is not found", ModelUnknown),
        ("NOT_FOUND", "Request for unknown model: 'x' has no available versions", ModelUnknown),
        ("INVALID_ARGUMENT", "Request for unknown model: 'x' version 2", ModelUnknown),
        ("INTERNAL", "failed to load 'x', failed to poll from model repository", ModelUnknown),
        ("UNAVAILABLE", "Request timeout expired", TritonTimeout),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", TritonTimeout),
        ("UNAVAILABLE", "Exceeds maximum queue size", QueueFull),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", RequestRejected),
        ("INVALID_ARGUMENT", "load failed for model 'x': RuntimeError", ModelFailed),
        ("INTERNAL", "Stub process 'x_0_0' is not healthy.", StubUnhealthy),
        (
            "INVALID_ARGUMENT",
            "load failed for model 'x': version 1 is at UNAVAILABLE state: Internal: "
            "Stub process 'x_0_0' is not healthy.;",
            StubUnhealthy,
        ),
        ("UNAVAILABLE", "failed to connect to all addresses", TritonUnavailable),
        ("INVALID_ARGUMENT", "unexpected shape for input", RequestRejected),
        ("UNKNOWN", "something else", ModelFailed),
        (None, None, ModelFailed),
    ],
)
def test_failures_are_told_apart(
    code: str | None, text: str | None, kind: type[TritonError]
) -> None:
    failure = failure_of(f"StatusCode.{code}" if code else None, text)
    assert type(failure) is kind
    assert failure.message == (text or "no message")
