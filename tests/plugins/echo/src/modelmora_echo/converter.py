"""From a model's files to an artefact. Runs in the converter's process, never in the server's.

A model of this task is a folder with `echo.json`: `{"times": 2, "separator": " / "}`.
"""

from __future__ import annotations

import json
from importlib import metadata
from typing import TYPE_CHECKING, Any

from converters.conversion import fresh_output
from converters.errors import ArtifactNotAccessible, ExportFailed
from converters.manifest import write_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from converters.conversion import Conversion

SOURCE = "echo.json"
GRAPH = "order.json"


def convert(conversion: Conversion) -> dict[str, Any]:
    """Write the artefact of one model into `conversion.output`; returns its manifest.

    Raises:
        ConversionError: its message is for whoever asked for the installation.
    """
    conversion.events.progress("load", 0.0, "reading echo.json")
    settings = _settings(conversion.source)
    with fresh_output(conversion.output):
        graph = json.dumps({"order": "backwards"})
        (conversion.output / GRAPH).write_text(graph, encoding="utf-8")
        conversion.events.progress("write", 1.0, "writing the artefact")
        return write_manifest(conversion.output, _manifest(conversion, settings))


def _settings(source: Path) -> dict[str, Any]:
    try:
        given = json.loads((source / SOURCE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactNotAccessible(f"The model has no {SOURCE}.") from error
    except ValueError as error:
        raise ArtifactNotAccessible(f"{SOURCE} is not JSON: {error}.") from error
    times = given.get("times", 1) if isinstance(given, dict) else None
    if not isinstance(times, int) or not 1 <= times <= 10:
        raise ExportFailed(f"{SOURCE}: times must be a number from 1 to 10, got {times!r}.")
    return {"times": times, "separator": str(given.get("separator", " "))}


def _manifest(conversion: Conversion, settings: dict[str, Any]) -> dict[str, Any]:
    identity = conversion.identity
    return {
        "format": 1,
        "model_id": identity.model_id,
        "version": identity.version,
        "revision": identity.revision,
        "source_checksum": identity.source_checksum,
        "task_type": conversion.task,
        "backend": "echo",
        "engine": "echo_engine",
        "precision": "fp32",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [
            {"name": "text_output", "datatype": "BYTES", "shape": [1]},
            {"name": "characters", "datatype": "INT32", "shape": [1]},
        ],
        "max_batch_size": 32,
        "probe": {"inputs": {"text_input": "health"}, "parameters": {"upper": False}},
        "echo": settings | {"graph_file": GRAPH},
        "converter": {"modelmora-echo": metadata.version("modelmora-echo")},
    }
