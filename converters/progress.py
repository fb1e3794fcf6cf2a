"""The converter's side of the JSON-lines protocol: one JSON object per line on a stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from converters.errors import ConversionError

PHASES = ("load", "export", "verify", "write")


class EventStream:
    """Writes progress, result and error lines; each is flushed, the reader waits for it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """Say how far a phase of `PHASES` has come, `fraction` in 0.0-1.0."""
        self._line(event="progress", phase=phase, fraction=round(fraction, 3), message=message)

    def result(self, manifest: dict[str, Any]) -> None:
        self._line(event="result", manifest=manifest)

    def error(self, error: ConversionError) -> None:
        self._line(event="error", code=error.code, message=" ".join(str(error).split()))

    def _line(self, **event: Any) -> None:
        self._out.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._out.flush()
