"""Receives a source: into the cache, hashed on the way, moved to its destination when whole."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from controlplane.errors import SourceRefused
from controlplane.registry.disk import remove_tree, require_space, sync_folder
from controlplane.registry.file_intake import FileIntake
from controlplane.registry.files import (
    RECORD,
    FetchedSource,
    Progress,
    SourceFile,
    source_checksum,
)
from controlplane.registry.rate import Rate
from controlplane.registry.stopping import FetchCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from controlplane.registry.blobs import BlobCache
    from controlplane.registry.stopping import Cancellation

PARTIAL = ".partial"
_CHUNK = 1024 * 1024
_MB = 1024 * 1024


class Intake:
    """The files of one source on their way in; usable from several threads.

    Attributes:
        folder: where they are put until `finish` renames it to the destination.
        version: what was asked for; most sources have only one.
    """

    def __init__(
        self,
        owner: str,
        destination: Path,
        cache: BlobCache,
        progress: Callable[[Progress], None],
        cancelled: Cancellation,
        *,
        max_bytes: int,
    ) -> None:
        self.owner = owner
        self.destination = destination
        self.folder = destination.with_name(destination.name + PARTIAL)
        self.cache = cache
        self.version = ""
        self.total = 0
        self._done = 0
        self._max_bytes = max_bytes
        self._files: dict[str, SourceFile] = {}
        self._progress = progress
        self._cancelled = cancelled
        self._rate = Rate()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Make an empty folder; what an earlier attempt left is removed."""
        remove_tree(self.folder)
        self.folder.mkdir(parents=True)

    def expect(self, total: int, *, here: int = 0) -> None:
        """Say how many bytes will come; `here` of them are on this disk already.

        Raises:
            SourceRefused: more than the operator allows.
            InsufficientDisk: they would not fit.
        """
        self.total = total
        require_space(self.folder, total - here)

    def check_size(self, size: int) -> None:
        """Raises SourceRefused for more bytes than the operator allows."""
        if size > self._max_bytes:
            raise SourceRefused(
                f"The source of {self.owner} has {size / _MB:.0f} MB or more; at most "
                f"{self._max_bytes / _MB:.0f} MB are allowed (MODELMORA_MAX_SOURCE_MB)."
            )

    def reuse(self, path: str, sha256: str) -> bool:
        """Take a file from the cache; True if it was there."""
        if not self.cache.has(sha256):
            return False
        size = self.cache.reuse(sha256, self._target(path), self.check_cancelled)
        if size is None:
            return False
        self.advance(path, size, came=False)
        self._files[path] = SourceFile(path, size, sha256)
        return True

    def reuse_known(self, path: str, key: str, validator: str) -> bool:
        """As `reuse`, for a file that was received with this key and validator before."""
        sha256 = self.cache.known(key, validator)
        return sha256 is not None and self.reuse(path, sha256)

    @contextmanager
    def receiving(
        self, path: str, *, key: str | None = None, validator: str | None = None
    ) -> Iterator[FileIntake]:
        """Receive the source's file `path`; `take` it at the end, or it is given up.

        Args:
            key: of the partial file, the same at each attempt; None keeps nothing.
            validator: names the content, where that is known before; bytes that are left of
                another one are dropped.
        """
        name = key or uuid4().hex
        with self.cache.reserve(name, self.check_cancelled) as part:
            target = FileIntake(self, path, part, validator=validator, keep=key is not None)
            try:
                yield target
            finally:
                target.leave()

    def take(self, target: FileIntake) -> SourceFile:
        """Take a file for received and verified; it is in the cache and in the folder then."""
        file = target.finish()
        self.cache.adopt(target.part, file.sha256, self._target(file.path))
        self._files[file.path] = file
        if target.name is not None:
            self.cache.remember(target.part.name, target.name, file.sha256)
        return file

    def has(self, path: str) -> bool:
        """True when that file was received."""
        return path in self._files

    def read(self, path: str) -> bytes:
        """Content of a file that was received."""
        return (self.folder / path).read_bytes()

    def check_cancelled(self) -> None:
        """Raises FetchCancelled when the caller asked to stop."""
        if self._cancelled.is_set():
            raise FetchCancelled

    def advance(self, path: str, count: int, *, came: bool = True) -> None:
        """Count bytes (negative when they are received again) and tell of it.

        Args:
            came: they came just now, so that they say how fast it goes.
        """
        with self._lock:  # told in order, too
            self._done += count
            rate = self._rate.add(count if came and count > 0 else 0)
            total = max(self.total, self._done)
            speed = "" if rate is None else f", {rate / _MB:.1f} MB/s"
            self._progress(
                Progress(
                    phase="downloading",
                    step=path,
                    message=f"{path}: {self._done / _MB:.1f} of {total / _MB:.1f} MB{speed}",
                    fraction=self._done / total if total else None,
                    bytes_done=self._done,
                    bytes_total=total,
                    rate=rate,
                )
            )

    def finish(self, revision: str | None, artifact_uri: str) -> FetchedSource:
        """Everything is here: move it to the destination, in one step.

        Returns:
            What was received; a record of it lies in the destination.
        """
        files = tuple(self._files[path] for path in sorted(self._files))
        source = FetchedSource(
            revision=revision,
            artifact_uri=artifact_uri,
            checksum=source_checksum(files),
            files=files,
        )
        record = self.folder / RECORD
        with record.open("wb") as handle:
            handle.write(msgspec.json.encode(source))
            handle.flush()
            os.fsync(handle.fileno())
        for folder in {(self.folder / file.path).parent for file in files} | {self.folder}:
            sync_folder(folder)
        remove_tree(self.destination)
        self.folder.rename(self.destination)
        sync_folder(self.destination.parent)
        return source

    def discard(self) -> None:
        """Remove the folder; what the cache has of it stays there for the next attempt."""
        remove_tree(self.folder)

    def _target(self, path: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        return target


def received_before(destination: Path, cancelled: Cancellation) -> FetchedSource | None:
    """What an earlier fetch put there, when every byte of it is still as it was; else None.

    Raises:
        FetchCancelled.
    """
    try:
        source = msgspec.json.decode((destination / RECORD).read_bytes(), type=FetchedSource)
        for file in source.files:
            if _digest(destination / file.path, cancelled) != (file.size, file.sha256):
                return None
    except (OSError, msgspec.DecodeError):
        return None
    return source if source.checksum == source_checksum(source.files) else None


def _digest(path: Path, cancelled: Cancellation) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            if cancelled.is_set():
                raise FetchCancelled
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()
