"""A directory on this machine as a model's source: checked, then copied.

It is copied, not linked: the user may edit the files, and a version's bytes never change.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from controlplane.errors import ArtifactNotAccessible, ValidationFailed
from controlplane.registry import ready_source
from controlplane.registry.files import MODULES
from controlplane.registry.selection import check_received, choose, module_folders

if TYPE_CHECKING:
    from controlplane.registry.files import FetchedSource, SourceRules
    from controlplane.registry.intake import Intake

_CHUNK = 1024 * 1024


def directory_of(source_url: str) -> Path:
    """The directory that a `file://` URL or a plain path names.

    Raises:
        ValidationFailed: it is a URL of another kind.
    """
    if "://" not in source_url:
        return Path(source_url)
    parts = urlsplit(source_url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValidationFailed.field(
            "source_url", "must be a directory's path or file:// URL, or left out for the hub"
        )
    return Path(unquote(parts.path))


def copy_directory(folder: Path, intake: Intake, rules: SourceRules) -> FetchedSource:
    """Copy the needed files of a directory into `intake`.

    Raises:
        ArtifactNotAccessible: the directory, or something in it that is needed, is missing, cannot
            be read, or is a link that leaves the directory.
        TritonModelInvalid, SourceRefused, UnsafeWeights, InsufficientDisk, FetchCancelled.
    """
    where = str(folder)
    try:
        root = folder.resolve(strict=True)
        if not root.is_dir():
            raise ArtifactNotAccessible(f"{where} is not a directory.")
        if ready_source.is_ready_folder(root):
            return ready_source.copy_ready_folder(root, intake, rules)
        folders = module_folders(_modules(root, where), where)
        there = ready_source.files_below(root) if rules.any_layout else _names(root, folders)
        names = choose(there, folders, where=where, rules=rules)
        sizes = {name: _size(root, name, where) for name in names}
        intake.check_size(sum(sizes.values()))
        intake.expect(sum(sizes.values()))
        small = [name for name in names if sizes[name] <= _CHUNK]
        for some in (small, [name for name in names if sizes[name] > _CHUNK]):
            for name in some:
                _copy(root, name, intake)
            check_received(intake, names, where, rules)
    except FileNotFoundError as error:
        raise ArtifactNotAccessible(f"{error.filename or where} does not exist.") from error
    except (PermissionError, NotADirectoryError, IsADirectoryError, RuntimeError) as error:
        raise ArtifactNotAccessible(f"{where} cannot be read: {error}.") from error
    return intake.finish(None, root.as_uri())


def _modules(root: Path, where: str) -> bytes | None:
    path = root / MODULES
    if not path.is_file():
        return None
    _size(root, MODULES, where)  # no link that leaves the directory is read
    return path.read_bytes()


def _names(root: Path, folders: tuple[str, ...]) -> list[str]:
    """Paths of the files in these folders, relative to the root."""
    found = []
    for folder in folders:
        inside = root / folder if folder else root
        if inside.is_dir():
            found += [f"{folder}/{item.name}" if folder else item.name for item in inside.iterdir()]
    return found


def _size(root: Path, name: str, where: str) -> int:
    """Bytes of a file that may be taken."""
    target = (root / name).resolve(strict=True)
    if not any(target.is_relative_to(place) for place in _places(root)):
        raise ArtifactNotAccessible(f"{name} in {where} is a link that leaves the directory.")
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactNotAccessible(f"{name} in {where} is not a regular file.")
    return status.st_size


def _places(root: Path) -> list[Path]:
    """Where links may lead: within the directory, and from a snapshot of the hub library's own
    cache (`models--…/snapshots/{commit}`) to the blobs it consists of."""
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        return [root, root.parent.parent / "blobs"]
    return [root]


def _copy(root: Path, name: str, intake: Intake) -> None:
    with intake.receiving(name) as target, (root / name).open("rb") as source:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        intake.take(target)
