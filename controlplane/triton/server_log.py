"""Triton's and the stubs' output, line by line, into the structured log."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import deque

import structlog

_log = structlog.get_logger(__name__)

# "I1123 00:58:13.822422 8438 grpc_server.cc:2558] "Started GRPCInferenceService at …"": severity,
# month and day, time, process, place, message (Triton's "default" log format).
_LINE = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ (\d+) ([^ \]]+:\d+)\] ?(.*)", re.DOTALL)
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_MAX_LINE = 16 * 1024
_CHUNK = 64 * 1024


class LogLine:
    """One line of output.

    Attributes:
        level: structlog's method name.
        origin: `file:line` in Triton's or the model's source, None for plain output.
        text: the message, unquoted.
    """

    __slots__ = ("level", "origin", "text")

    def __init__(self, level: str, origin: str | None, text: str) -> None:
        self.level = level
        self.origin = origin
        self.text = text


def parse_line(line: str) -> LogLine | None:
    """Read one line of the server's output; None for blank lines.

    The tables that Triton prints at start become debug lines; what models print, plain lines.
    """
    match = _LINE.fullmatch(line)
    if match is not None:
        severity, _, origin, message = match.groups()
        return LogLine(_LEVELS[severity], origin, _unquoted(message)) if message else None
    if not line.strip():
        return None
    is_table = line.startswith(("+-", "| ")) and line.rstrip().endswith(("+", "|"))
    return LogLine("debug" if is_table else "info", None, line.rstrip())


def _unquoted(message: str) -> str:
    if message.startswith('"') and message.endswith('"') and len(message) > 1:
        try:
            return str(json.loads(message))
        except ValueError:  # not every escape of Triton's is JSON's
            return message[1:-1]
    return message


class LogPipe:
    """The read end of a pipe that server and stubs write to, drained on the event loop.

    Not asyncio's own subprocess pipes: a stub that outlives the server keeps the write end open,
    and this end must be closable at any time.
    """

    def __init__(self, *, keep: int = 50) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._drain)
        self._open = True
        self.recent: deque[str] = deque(maxlen=keep)

    def close_write_end(self) -> None:
        """To be called once the child has it, or the end of file would never come."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        """Log what is there and let go of the pipe."""
        self.close_write_end()
        if self._open:
            self._drain()
        if self._open:
            self._shut()

    def _drain(self) -> None:
        try:
            data = os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._shut()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) > _MAX_LINE:  # no newline in sight: do not hoard a model's output
            self._emit(self._rest)
            self._rest = b""

    def _shut(self) -> None:
        self._open = False
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        self._emit(self._rest)

    def _emit(self, raw: bytes) -> None:
        line = parse_line(raw[:_MAX_LINE].decode("utf-8", "replace"))
        if line is None:
            return
        if line.level != "debug":
            self.recent.append(line.text)
        where = {"origin": line.origin} if line.origin else {"source": "model"}
        getattr(_log, line.level)(line.text, server="triton", **where)
