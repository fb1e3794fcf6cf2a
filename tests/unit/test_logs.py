"""Log lines: one JSON object each, whoever wrote them, with the trace id of their request."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings

import pytest
import structlog

from controlplane.gateway.trace import begin_trace
from controlplane.observability.logs import configure_logging

TRACE = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"


@pytest.fixture
def log():
    """A configured stream; the process's logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_in_a_fixed_order(log):
    configure_logging("INFO", "json", log)
    structlog.get_logger("controlplane.x").info("model loaded", model_id="a/b", memory_mb=3.5)
    (line,) = lines(log)
    assert list(line)[:4] == ["timestamp", "level", "message", "source"]
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "level": "info",
        "message": "model loaded",
        "source": "controlplane.x",
        "model_id": "a/b",
        "memory_mb": 3.5,
    }


def test_libraries_write_the_same_lines(log):
    configure_logging("INFO", "json", log)
    begin_trace(TRACE, None)
    logging.getLogger("uvicorn.error").warning("careful: %s", "x")
    structlog.get_logger("ours").warning("careful")
    theirs, ours = lines(log)
    assert theirs["message"] == "careful: x"
    assert theirs["source"] == "uvicorn.error"
    assert set(theirs) == set(ours)
    assert theirs["trace_id"] == ours["trace_id"] == TRACE


def test_levels(log):
    configure_logging("WARNING", "json", log)
    structlog.get_logger("a").info("quiet")
    logging.getLogger("b").info("quiet")
    structlog.get_logger("a").error("loud")
    assert [line["message"] for line in lines(log)] == ["loud"]


def test_chatty_libraries_are_held_back(log):
    configure_logging("DEBUG", "json", log)
    logging.getLogger("httpx").info("GET …")
    logging.getLogger("uvicorn.access").info("GET …")
    logging.getLogger("controlplane").debug("kept")
    assert [line["message"] for line in lines(log)] == ["kept"]


@pytest.mark.parametrize("standard", [True, False])
def test_exceptions_carry_their_stack(log, standard):
    configure_logging("INFO", "json", log)
    logger = logging.getLogger("x") if standard else structlog.get_logger("x")
    try:
        raise ValueError("no good")
    except ValueError:
        logger.exception("failed")
    (line,) = lines(log)
    assert "ValueError: no good" in line["exception"]
    assert "test_logs.py" in line["exception"]


def test_odd_values_do_not_lose_the_line(log):
    configure_logging("INFO", "json", log)
    structlog.get_logger("x").info(
        "odd", value=object, text="a\nb ü", binary=b"\xff", n=float("nan")
    )
    (line,) = lines(log)
    assert line["text"] == "a\nb ü"


def test_console_is_text_without_colours_off_a_terminal(log):
    configure_logging("INFO", "auto", log)
    assert structlog.get_config()["processors"][-1].__class__.__name__ == "JSONRenderer"
    configure_logging("INFO", "console", log)
    structlog.get_logger("x").info("hello", a=1)
    assert "hello" in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_configuring_twice_writes_once(log):
    configure_logging("INFO", "json", log)
    configure_logging("INFO", "json", log)
    logging.getLogger("x").warning("once")
    assert len(lines(log)) == 1


def test_warnings_are_logged(log):
    configure_logging("INFO", "json", log)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old ways", stacklevel=1)
    assert "old ways" in lines(log)[0]["message"]


async def test_each_task_keeps_its_own_trace(log):
    configure_logging("INFO", "json", log)

    async def request(number):
        trace = begin_trace(None, None)
        await asyncio.sleep(0)
        structlog.get_logger("x").info("served", number=number)
        return trace

    traces = await asyncio.gather(*(asyncio.create_task(request(n)) for n in range(5)))
    assert [line["trace_id"] for line in lines(log)] == traces
    assert len(set(traces)) == 5
