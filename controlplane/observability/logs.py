"""Structured logs: one line per event, JSON for machines or coloured text for people.

structlog writes our own lines; what libraries say through `logging` (uvicorn, Litestar, grpc,
asyncio) goes through the same processors to the same stream. Values bound to the context (the
request's trace id and model id) are on every line written while it is served.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Format = Literal["json", "console", "auto"]

# These tell of every request and every poll; ours already do, with the trace id.
_CHATTY = ("httpx", "httpcore", "huggingface_hub", "urllib3", "filelock", "asyncio", "hpack")


def configure_logging(level: Level, format: Format, stream: TextIO | None = None) -> None:
    """Set up structlog and `logging` for this process; may be called again to change them.

    Args:
        level: lines below it are dropped; libraries that tell of every step say WARNING at least.
        format: `auto` is console on a terminal and JSON elsewhere.
        stream: where lines go; standard error when None.
    """
    out = stream or sys.stderr
    console = format == "console" or (format == "auto" and out.isatty())
    shared = _shared_processors()
    last = _console_renderer(out) if console else _json_processors()
    number = logging.getLevelName(level)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_LoggerFactory(out),
        # Loggers live in modules: caching would keep them on the first stream for ever.
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(number, out, shared, last)


class _NamedLogger(structlog.WriteLogger):
    """A logger that knows the module it writes for."""

    def __init__(self, file: TextIO, name: str) -> None:
        super().__init__(file)
        self.name = name


class _LoggerFactory:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, *args: Any) -> _NamedLogger:
        return _NamedLogger(self._file, str(args[0]) if args else "modelmora")


def _shared_processors() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        _add_source,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _add_source(logger: WrappedLogger, _: str, event: EventDict) -> EventDict:
    """`source`: the module that wrote the line (domain §5.3)."""
    record = event.get("_record")
    event["source"] = record.name if record else getattr(logger, "name", "modelmora")
    return event


def _json_processors() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
        _in_order,
        structlog.processors.JSONRenderer(serializer=_to_json),
    ]


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The fields that every line has come first, and the message under its domain name."""
    first = {
        "timestamp": event.pop("timestamp", None),
        "level": event.pop("level", None),
        "message": event.pop("event", None),
        "source": event.pop("source", None),
    }
    return {**first, **event}


def _to_json(event: EventDict, **_: Any) -> str:
    # `repr`: a value that has no JSON form must not lose the line it stands in.
    return msgspec.json.encode(event, enc_hook=repr).decode()


def _console_renderer(out: TextIO) -> list[Processor]:
    colors = out.isatty()
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        # Plain tracebacks: rich ones show local variables, which may hold secrets.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_without_source, renderer]


def _without_source(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("source", None)
    return event


def _route_standard_logging(
    level: int, out: TextIO, shared: list[Processor], last: list[Processor]
) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, *shared],
        processors=[_add_source, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "litestar", "grpc"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # uvicorn's lines about requests come without trace id, and ours say the same.
    logging.getLogger("uvicorn.access").setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)
