"""One conversion as its converter is given it, and how the converter for a task is found.

A converter is a function `Conversion -> manifest`, named as an entry point of the group
`modelmora.converters` by the task that it serves (docs/extending.md). It writes the artefact into
`Conversion.output` and raises `ConversionError` for whatever the user should read.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters import plugins
from converters.errors import ExportFailed, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from converters.manifest import Identity
    from converters.progress import EventStream

GROUP = "modelmora.converters"


@dataclass(frozen=True)
class Conversion:
    """What is to be converted, and how.

    Attributes:
        task: the task type, e.g. `txt2embed`.
        source: the model's folder, as downloaded.
        output: where the artefact is to be; does not exist yet.
        allow_pickle: pickled weights may be read.
        trusted: the Python files that config.json names may be imported, out of `source` only.
        threads: for torch and the engines; None leaves it to them.
        engine, precision: what the user asked for; None chooses the best by measurement.
    """

    task: str
    source: Path
    output: Path
    identity: Identity
    events: EventStream
    allow_pickle: bool = False
    trusted: bool = False
    threads: int | None = None
    engine: str | None = None
    precision: str | None = None


Converter = Callable[[Conversion], dict[str, Any]]


def find_converter(task: str) -> Converter:
    """The converter that serves a task.

    Raises:
        ExportFailed: there is none, or more than one, or it cannot be imported.
    """
    try:
        entry = plugins.find(GROUP, task)
    except LookupError as error:
        raise ExportFailed(f"No converter can be used for the task {task}: {error}.") from error
    try:
        converter: Converter = entry.load()
    except Exception as error:
        raise ExportFailed(
            f"The converter {entry.value} cannot be imported: {one_line(error)}."
        ) from error
    return converter


@contextlib.contextmanager
def fresh_output(output: Path) -> Iterator[None]:
    """Creates the artefact's folder; it is gone again when the body raises.

    Raises:
        ExportFailed: it exists already.
    """
    if output.exists():
        raise ExportFailed(f"{output} exists already.")
    output.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
