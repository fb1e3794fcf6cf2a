"""Ready-made Triton models on their way in, and whose folders may bring them.

Such a model is code: it runs in the server, as the server's user. A folder of this machine is
trusted when it belongs to that user (or root) and not everybody may write to it, as ssh wants it
of its keys: otherwise whoever has another account here could become that user by asking for an
installation. The operator may name further folders (`ready_model_dirs`), whose owners do not
matter, and allow archives and S3 (`allow_remote_ready_models`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.errors import ArtifactNotAccessible, SourceRefused
from controlplane.registry.ready_models import CONFIG, MOST_FILES, choose, is_ready_made
from controlplane.triton.ready_config import LARGEST_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.registry.files import FetchedSource, SourceRules
    from controlplane.registry.intake import Intake
    from controlplane.registry.ready_models import Choice

_CHUNK = 1024 * 1024
_MOST_LOOKED_AT = 10 * MOST_FILES


def is_ready_folder(folder: Path) -> bool:
    """True for a directory that means to be a ready-made model.

    Raises:
        OSError: it cannot be listed.
    """
    return is_ready_made(os.listdir(folder))  # noqa: PTH208 names are enough


def examine(root: Path, version: str) -> Choice:
    """What would be taken of a folder.

    Args:
        root: absolute, without links.

    Raises:
        TritonModelInvalid: naming what is wrong with it.
        ArtifactNotAccessible: something in it is a link to a folder, or leaves it.
        OSError: it cannot be read.
    """
    with (root / CONFIG).open("rb") as file:
        config = file.read(LARGEST_CONFIG + 1)
    return choose(list(files_below(root)), config, version, str(root))


def copy_ready_folder(root: Path, intake: Intake, rules: SourceRules) -> FetchedSource:
    """Copy the files of a ready-made model into `intake`.

    Raises:
        TritonModelInvalid, ArtifactNotAccessible, OSError: as `examine`.
        SourceRefused: it is not trusted, or too large.
        InsufficientDisk, FetchCancelled.
    """
    check_trust(root, rules)
    chosen = examine(root, intake.version)
    total = sum(_checked(root, name).st_size for name in chosen.files)
    intake.check_size(total)
    intake.expect(total)
    for name in chosen.files:
        _copy(root, name, intake, rules)
    return intake.finish(None, root.as_uri())


def check_remote(where: str, rules: SourceRules) -> None:
    """Whether a ready-made model of an archive or bucket may run in the server.

    Raises:
        SourceRefused: the operator allows none from elsewhere.
    """
    if not rules.allow_remote_ready:
        raise SourceRefused(
            f"{where} is a ready-made Triton model, whose code would run in the server. Unpack it, "
            "look at it and install the directory; or trust all such sources with "
            "MODELMORA_ALLOW_REMOTE_READY_MODELS=true."
        )


def check_trust(root: Path, rules: SourceRules) -> None:
    """Whether the model in a folder may run in the server.

    Raises:
        SourceRefused: somebody else could have put code there.
    """
    if not _named(root, rules):
        _check_owner(root, root.stat())


def _named(root: Path, rules: SourceRules) -> bool:
    return any(root.is_relative_to(Path(place).resolve()) for place in rules.ready_dirs)


def _check_owner(path: Path, status: os.stat_result) -> None:
    mine = status.st_uid in (0, os.geteuid())
    if mine and not status.st_mode & stat.S_IWOTH:
        return
    why = "everybody may write to it" if mine else f"it belongs to user {status.st_uid}"
    raise SourceRefused(
        f"{path} would run as code in the server, and {why}. Make it your own (chown, chmod o-w), "
        "or name its folder with MODELMORA_READY_MODEL_DIRS."
    )


def files_below(root: Path) -> Iterator[str]:
    """Paths of all files, hidden ones apart; folders that are links are refused, not followed."""
    pending, count = [root], 0
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                if count > _MOST_LOOKED_AT:
                    raise ArtifactNotAccessible(
                        f"{root} holds more than {_MOST_LOOKED_AT} files and folders."
                    )
                if entry.name.startswith(".") or entry.name == "__pycache__":
                    continue
                path = Path(entry.path)
                if not entry.is_dir():
                    yield path.relative_to(root).as_posix()
                elif entry.is_symlink():
                    name = path.relative_to(root)
                    raise ArtifactNotAccessible(
                        f"{name} in {root} is a link to a folder: put a copy in its place."
                    )
                else:
                    pending.append(path)


def _checked(root: Path, name: str) -> os.stat_result:
    """The status of a file that may be taken."""
    target = (root / name).resolve(strict=True)
    if not target.is_relative_to(root):
        raise ArtifactNotAccessible(f"{name} in {root} is a link that leaves the directory.")
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactNotAccessible(f"{name} in {root} is not a regular file.")
    return status


def _copy(root: Path, name: str, intake: Intake, rules: SourceRules) -> None:
    path = root / name
    trusted = _named(root, rules)
    with intake.receiving(name) as target, path.open("rb") as source:
        if not trusted:
            # Of the file that was opened: what has the name may be another one by now.
            _check_owner(path, os.fstat(source.fileno()))
            _check_owner(path.parent, path.parent.stat())
        while chunk := source.read(_CHUNK):
            target.write(chunk)
        intake.take(target)
