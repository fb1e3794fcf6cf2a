"""The trace id of the request being served: the caller's or a new one, in every log line."""

from __future__ import annotations

import re
import uuid

import structlog

from controlplane.events import random_id

TRACE_HEADER = "x-trace-id"

_UUID = re.compile(
    r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}"
)
# W3C Trace Context, level 1, §3.2: version-traceid-parentid-flags, version ff forbidden.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_NONE = "0" * 32


def choose_trace_id(header: str | None, traceparent: str | None) -> str:
    """The caller's trace id where it sent a well-formed one, else a new one; UUID text form.

    Args:
        header: X-Trace-Id, a UUID with or without dashes.
        traceparent: the W3C header.
    """
    if header is None and traceparent is None:
        return random_id()
    text = ""
    if header and _UUID.fullmatch(header):
        text = header
    elif traceparent and (match := _TRACEPARENT.fullmatch(traceparent)):
        text = match.group(1)
    digits = text.replace("-", "").lower()
    return str(uuid.UUID(digits)) if digits and digits != _NONE else random_id()


def begin_trace(header: str | None, traceparent: str | None) -> str:
    """Choose the request's trace id and bind it for its task and the tasks it starts."""
    trace_id = choose_trace_id(header, traceparent)
    continue_trace(trace_id)
    return trace_id


def continue_trace(trace_id: str) -> None:
    """Bind a trace id that was chosen before for the request's task and the tasks it starts."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(trace_id=trace_id)


def current_trace_id() -> str | None:
    """Trace id of the request being served, None outside of one."""
    found = structlog.contextvars.get_contextvars().get("trace_id")
    return found if isinstance(found, str) else None


def name_model(model_id: str) -> None:
    """Have the request's log lines, the access line included, carry the model's id."""
    structlog.contextvars.bind_contextvars(model_id=model_id)
