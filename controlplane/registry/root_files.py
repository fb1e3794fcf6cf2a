"""Files beside the version folders of a ready-made model: labels, tokenizers, environments.

Triton has one set of them for all versions. Each version keeps its own in `.root` of its folder,
where they are verified and go with it; the model's folder has links to them. Versions whose files
of one name differ cannot be installed side by side.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from typing import TYPE_CHECKING, Any

from controlplane.errors import TritonModelInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

ROOT = ".root"


def root_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """By path in the model's folder, the sha256 of a version's root files."""
    prefix = f"{ROOT}/"
    return {
        entry["path"].removeprefix(prefix): entry["sha256"]
        for entry in manifest.get("files", ())
        if entry["path"].startswith(prefix)
    }


def paths(manifest: Mapping[str, Any]) -> list[str]:
    """The paths of a version's root files in the model's folder."""
    return sorted(root_files(manifest))


def check_agreement(
    where: str, manifest: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> None:
    """Whether a version's root files may lie beside those of the other versions.

    Raises:
        TritonModelInvalid: naming a file that differs.
    """
    mine = root_files(manifest)
    for other in others:
        theirs = root_files(other)
        for path in sorted(mine.keys() & theirs.keys()):
            if mine[path] != theirs[path]:
                what = (
                    f"differs from that of version {other.get('version')}, and Triton has one for "
                    "all versions: put it into the version folder, or install a model of its own"
                )
                raise TritonModelInvalid(where, {path: what})


def place(home: Path, version: Path, paths: Iterable[str]) -> None:
    """Put a version's root files into the model's folder; what is the same stays untouched."""
    for path in paths:
        source, target = version / ROOT / path, home / path
        if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target)


def _link(source: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:  # a file system without links
        shutil.copyfile(source, fresh)
    fresh.replace(target)


def take_away(home: Path, paths: Iterable[str]) -> None:
    """Remove root files that no version needs any more, and folders that are empty then."""
    for path in paths:
        (home / path).unlink(missing_ok=True)
        for folder in (home / path).parents:
            if folder == home:
                break
            with contextlib.suppress(OSError):  # others are in it
                folder.rmdir()
