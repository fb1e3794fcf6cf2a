"""Are the bytes on this machine those that a lock names? Every file is read and hashed.

Sources are compared with the lock's digests of them. Artefacts are compared with the digests that
were recorded when they were published: another machine's converter may have made other bytes from
the same source, which is no drift (see docs/lock.md).
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.registry.files import RECORD, Progress, SourceFile
from controlplane.registry.lock_plan import same_bytes
from controlplane.registry.lock_work import Drift, Part
from controlplane.registry.model import VersionStatus
from controlplane.registry.rate import Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from controlplane.registry.lock import LockedModelEntry
    from controlplane.registry.model import Model, ModelVersion

_CHUNK = 2**20
_MB = 1024 * 1024
_MOST_THREADS = 8  # beyond that a disk does not get faster


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
    wanted: Sequence[Target],
    *,
    progress: Callable[[Progress], None],
    cancelled: threading.Event,
) -> list[Drift]:
    """Hash all files, several at a time; blocks for as long as that takes, so run it in a thread.

    Args:
        progress: told of the bytes read so far, from any thread; the last time when all are read.

    Raises:
        Stopped: `cancelled` was set.
    """
    total = sum(file.size for target in wanted for file in target.files)
    hasher = _Hasher(total, progress, cancelled)
    # sha256 leaves other threads alone while it works on a chunk
    count = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(count, thread_name_prefix="verify") as threads:
        found = [
            [threads.submit(_file_drift, target, file, hasher) for file in target.files]
            for target in wanted
        ]
        drift = [[one for future in futures if (one := future.result())] for futures in found]
    return [
        one
        for target, changed in zip(wanted, drift, strict=True)
        for one in (*changed, *_strays(target))
    ]


def _file_drift(target: Target, file: SourceFile, hasher: _Hasher) -> Drift | None:
    try:
        found = hasher.digest(target.folder / file.path)
    except OSError:
        return _drift(target, problem="missing", path=file.path)
    if found == file.sha256:
        return None
    return _drift(
        target,
        problem="changed",
        path=file.path,
        expected=f"sha256:{file.sha256}",
        found=f"sha256:{found}",
    )


def _strays(target: Target) -> Iterator[Drift]:
    """Files that should not be there; without a list of those that should, nobody can tell."""
    if not (target.complete and target.files and target.folder.is_dir()):
        return
    listed = {target.folder / file.path for file in target.files} | {target.folder / RECORD}
    for path in sorted(target.folder.rglob("*")):
        if path.is_file() and path not in listed:
            name = path.relative_to(target.folder).as_posix()
            yield _drift(target, problem="unexpected", path=name)


def _drift(target: Target, **what: Any) -> Drift:
    return Drift(model_id=target.model_id, version=target.version, part=target.part, **what)


class _Hasher:
    """Hashes files in several threads and tells of their bytes together."""

    def __init__(
        self, total: int, progress: Callable[[Progress], None], cancelled: threading.Event
    ) -> None:
        self._total = total
        self._progress = progress
        self._cancelled = cancelled
        self._done = 0
        self._rate = Rate()
        self._lock = threading.Lock()

    def digest(self, path: Path) -> str:
        """The file's SHA-256 in hexadecimal. Raises OSError, Stopped."""
        digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
        view = memoryview(buffer)
        with path.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                if self._cancelled.is_set():
                    raise Stopped
                digest.update(view[:count])
                self._advance(count, path.name)
        return digest.hexdigest()

    def _advance(self, count: int, name: str) -> None:
        with self._lock:  # told in order, too
            self._done += count
            rate = self._rate.add(count)
            # a file may have grown since its size was recorded
            total = max(self._total, self._done)
            speed = "" if rate is None else f", {rate / _MB:.0f} MB/s"
            self._progress(
                Progress(
                    phase="verifying",
                    step=name,
                    message=f"{name}: {self._done / _MB:.1f} of {total / _MB:.1f} MB{speed}",
                    fraction=self._done / total,
                    bytes_done=self._done,
                    bytes_total=total,
                    rate=rate,
                )
            )
