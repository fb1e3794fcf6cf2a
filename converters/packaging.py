"""Artefacts that are not exported: a model's own files, for a backend that runs its framework."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from converters.conversion import fresh_output
from converters.errors import ArtifactNotAccessible
from converters.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from converters.conversion import Conversion
    from converters.weights import Weights

# Below the artefact, so that no file of a model can stand in the place of one of ours.
MODEL_FOLDER = "model"


def packaged(
    conversion: Conversion, check: Callable[[Conversion, Weights], dict[str, Any]]
) -> dict[str, Any]:
    """A whole conversion of that kind; the manifest.

    Args:
        check: loads the model with its framework and tries it; gives the manifest.

    Raises:
        ConversionError: its subclass tells why; the output is gone then.
    """
    weights = find_weights(conversion.source, allow_pickle=conversion.allow_pickle)
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        manifest = check(conversion, weights)
        package(conversion)
        from converters.manifest import write_manifest

        return write_manifest(conversion.output, manifest)


def package(conversion: Conversion) -> tuple[Path, ...]:
    """Put the source's files into the output's `model`, as hard links where the disk has them.

    Links make gigabytes of weights exist once; nobody writes to them (the download is read-only).

    Returns:
        The paths within the source, sorted.

    Raises:
        ArtifactNotAccessible: the source holds no file, or one that is none (a link out of it).
        OSError: the output cannot be written.
    """
    source, output = conversion.source, conversion.output
    conversion.events.progress("write", 0.0, "packaging the model's files")
    names = sorted(path.relative_to(source) for path in source.rglob("*") if not path.is_dir())
    if not names:
        raise ArtifactNotAccessible(f"{source.name} holds no files.")
    for number, name in enumerate(names, start=1):
        _place(source / name, output / MODEL_FOLDER / name, source)
        # the rest of the step: what was written is digested for the manifest
        conversion.events.progress("write", 0.9 * number / len(names), "packaging")
    return tuple(names)


def _place(file: Path, target: Path, source: Path) -> None:
    real = file.resolve()
    if not real.is_file() or not real.is_relative_to(source.resolve()):
        raise ArtifactNotAccessible(f"{file.relative_to(source)} is not a file of the source.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(real, target)
