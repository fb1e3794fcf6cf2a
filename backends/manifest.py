"""An artefact's manifest as every backend reads it (`manifest.json` of a version folder)."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from backends.errors import ArtefactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version folder, whose files are all there.

    Raises:
        ArtefactError: no manifest, not one of ours, or a file it names is missing or has
            another size.
    """
    manifest = _parse(folder)
    with reading(folder):
        sizes = {str(entry["path"]): int(entry["size"]) for entry in manifest["files"]}
    _check_files(folder, sizes)
    return manifest


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns what goes wrong in reading a manifest's fields into `ArtefactError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"{MANIFEST} of {folder.name!r} is incomplete: {reason}.") from error


def _parse(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"{folder} has no readable {MANIFEST}: {error.strerror}.") from error
    except ValueError as error:
        raise ArtefactError(f"{folder / MANIFEST} is not JSON: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"{folder / MANIFEST} is not a manifest of format {FORMAT}; install the model again."
        )
    return manifest


def _check_files(folder: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing; install the model again.")
        found = path.stat().st_size
        if found != size:
            raise ArtefactError(
                f"{path} has {found} bytes instead of {size}; install the model again."
            )
