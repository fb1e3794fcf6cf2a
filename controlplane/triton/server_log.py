"""Triton's and the stubs' output, line by line, into the structured log."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import deque
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

# "I1123 00:58:13.822422 8438 grpc_server.cc:2558] "Started GRPCInferenceService at …"": severity,
# month and day, time, process, place, message (Triton's "default" log format).
_LINE = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ (\d+) ([^ \]]+:\d+)\] ?(.*)", re.DOTALL)
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_STARTED = re.compile(r"Started (GRPCInferenceService|HTTPService|Metrics Service) at ")
_ENDING = re.compile(r"Signal \(\d+\) received")
_IDLE = ": Found 0 model versions that have in-flight inferences"
# What Triton complains about on every machine without a GPU, one line of it as an error.
_NO_GPU = (
    "Unable to allocate pinned system memory",
    "CUDA memory pool disabled",
    "CudaDriverHelper has not been initialized",
    "Failed to initialize NVML",
    "DCGM unable to start",
)
_HAS_GPU = Path("/dev/nvidiactl").exists()
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
    if match is None:
        return _plain_line(line.rstrip())
    severity, _, origin, message = match.groups()
    level = "debug" if _is_noise(message) else _LEVELS[severity]
    return LogLine(level, origin, _unquoted(message)) if message else None


def _plain_line(text: str) -> LogLine | None:
    if not text:
        return None
    is_table = text.startswith(("+-", "| ")) and text.endswith(("+", "|"))
    return LogLine("debug" if is_table or _is_noise(text) else "info", None, text)


def _is_noise(text: str) -> bool:
    return not _HAS_GPU and any(part in text for part in _NO_GPU)


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

    Attributes:
        recent: the last lines, tables and noise left out.
        services: which of Triton's three frontends have said that they listen.
        is_idle: a stopping server has said that no inference runs any more.
        ending: set when the server has said that somebody told it to stop.
    """

    def __init__(self, *, keep: int = 50) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._drain)
        self._open = True
        self.recent: deque[str] = deque(maxlen=keep)
        self.services: set[str] = set()
        self.is_idle = False
        self.ending = asyncio.Event()

    def close_write_end(self) -> None:
        """To be called once the child has it, or the end of file would never come."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        """Log what is there and let go of the pipe."""
        self.close_write_end()
        while self._open and self._drain():
            continue
        if self._open:
            self._shut()

    def _drain(self) -> bool:
        """Read once; False when there was nothing to read."""
        try:
            data = os.read(self._read_fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._shut()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) > _MAX_LINE:  # no newline in sight: do not hoard a model's output
            self._emit(self._rest)
            self._rest = b""
        return True

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
        if (started := _STARTED.match(line.text)) is not None:
            self.services.add(started[1])
        if _ENDING.match(line.text) is not None:
            self.ending.set()
        if _IDLE in line.text:
            self.is_idle = True
        where = {"origin": line.origin} if line.origin else {"source": "model"}
        getattr(_log, line.level)(line.text, server="triton", **where)
