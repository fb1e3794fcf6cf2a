"""Artefacts that are not exported: a model's own files, for a backend that runs its framework."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from converters.errors import ArtifactNotAccessible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Below the artefact, so that no file of a model can stand in the place of one of ours.
MODEL_FOLDER = "model"


def package(
    source: Path, output: Path, progress: Callable[[float], None] = lambda _: None
) -> tuple[Path, ...]:
    """Put the source's files into `output`/model, as hard links where the file system has them.

    Links make gigabytes of weights exist once; nobody writes to them (the download is read-only).

    Returns:
        The paths within the source, sorted.

    Raises:
        ArtifactNotAccessible: the source holds no file, or one that is none (a link out of it).
        OSError: the output cannot be written.
    """
    names = sorted(path.relative_to(source) for path in source.rglob("*") if not path.is_dir())
    if not names:
        raise ArtifactNotAccessible(f"{source.name} holds no files.")
    for number, name in enumerate(names, start=1):
        _place(source / name, output / MODEL_FOLDER / name, source)
        progress(number / len(names))
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
