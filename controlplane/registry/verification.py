"""Are the bytes on this machine those that a lock names? Every file is read and hashed.

Sources are compared with the lock's digests of them. Artefacts are compared with the digests that
were recorded when they were published: another machine's converter may have made other bytes from
the same source, which is no drift (see docs/lock.md).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from controlplane.registry.files import RECORD, SourceFile
from controlplane.registry.lock_plan import same_bytes
from controlplane.registry.model import VersionStatus

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from controlplane.registry.lock import LockedModelEntry
    from controlplane.registry.model import Model, ModelVersion

Part = Literal["model", "source", "artefact"]
_CHUNK = 2**20


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was.

    Attributes:
        part: what `path` belongs to; `model` when the locked version is not installed.
        expected, found: `sha256:…`, where both are files.
    """

    model_id: str
    version: str
    part: Part
    problem: Literal["missing", "changed", "unexpected", "not installed"]
    path: str | None = None
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        what = f"{self.model_id}@{self.version}"
        if self.path is None:
            return f"{what} is {self.problem}"
        digests = f", expected {self.expected}, found {self.found}" if self.found else ""
        return f"{what}: {self.part} file {self.path} is {self.problem}{digests}"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A folder and the files that should be in it.

    Attributes:
        complete: files beyond those are drift too.
    """

    model_id: str
    version: str
    part: Part
    folder: Path
    files: tuple[SourceFile, ...]
    complete: bool = False


class Stopped(Exception):
    """The caller does not want to know any more."""


def targets(
    locked: Iterable[LockedModelEntry],
    models: Mapping[str, Model],
    files_of: Callable[[ModelVersion], Iterable[SourceFile]],
    *,
    downloads: Path,
    repository: Path,
) -> tuple[list[Target], list[Drift]]:
    """What to hash for a lock, and what need not be looked for: versions that are not installed.

    Args:
        files_of: the recorded source files of a version, for entries that have none.
    """
    found: list[Target] = []
    absent: list[Drift] = []
    for entry in locked:
        version = same_bytes(entry, models.get(entry.model_id))
        if version is None or version.status is not VersionStatus.READY:
            absent.append(
                Drift(
                    model_id=entry.model_id,
                    version=entry.version,
                    part="model",
                    problem="not installed",
                )
            )
            continue
        place = Path(version.triton_name) / str(version.triton_version)
        known: dict[str, Any] = {"model_id": entry.model_id, "version": version.version}
        files = entry.files or tuple(files_of(version))
        found.append(
            Target(part="source", folder=downloads / place, files=files, complete=True, **known)
        )
        listed = (version.artefact or {}).get("files", [])
        made = msgspec.convert(listed, tuple[SourceFile, ...])
        found.append(Target(part="artefact", folder=repository / place, files=made, **known))
    return found, absent


def verify(
    wanted: Iterable[Target],
    *,
    progress: Callable[[int, str], None],
    cancelled: threading.Event,
) -> list[Drift]:
    """Hash all files; blocks for as long as the disk takes, so run it in a thread.

    Args:
        progress: told of the bytes read so far and the file being read.

    Raises:
        Stopped: `cancelled` was set.
    """
    hasher = _Hasher(progress, cancelled)
    return [drift for target in wanted for drift in _drift(target, hasher)]


def _drift(target: Target, hasher: _Hasher) -> Iterator[Drift]:
    known: dict[str, Any] = {
        "model_id": target.model_id,
        "version": target.version,
        "part": target.part,
    }
    for file in target.files:
        try:
            found = hasher.digest(target.folder / file.path)
        except OSError:
            yield Drift(problem="missing", path=file.path, **known)
            continue
        if found != file.sha256:
            digests: dict[str, Any] = {
                "expected": f"sha256:{file.sha256}",
                "found": f"sha256:{found}",
            }
            yield Drift(problem="changed", path=file.path, **digests, **known)
    if target.complete and target.files and target.folder.is_dir():
        listed = {target.folder / file.path for file in target.files} | {target.folder / RECORD}
        for path in sorted(target.folder.rglob("*")):
            if path.is_file() and path not in listed:
                name = path.relative_to(target.folder).as_posix()
                yield Drift(problem="unexpected", path=name, **known)


class _Hasher:
    def __init__(self, progress: Callable[[int, str], None], cancelled: threading.Event) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self._done = 0
        self._buffer = bytearray(_CHUNK)

    def digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        view = memoryview(self._buffer)
        with path.open("rb", buffering=0) as handle:
            while count := handle.readinto(self._buffer):
                if self._cancelled.is_set():
                    raise Stopped
                digest.update(view[:count])
                self._done += count
                self._progress(self._done, path.name)
        return digest.hexdigest()
