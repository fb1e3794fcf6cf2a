"""Receives a source: beside its destination, hashed on the way, moved there when whole."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import msgspec

from controlplane.registry.disk import remove_tree, require_space, sync_folder
from controlplane.registry.files import FetchedSource, Progress, SourceFile, source_checksum

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

RECORD = ".source.json"
PARTIAL = ".partial"
_CHUNK = 1024 * 1024
_MB = 1024 * 1024


class FetchCancelled(Exception):
    """The caller asked to stop; nothing is left behind."""


class Intake:
    """The files of one source on their way in.

    Attributes:
        folder: where they are put until `finish` renames it to the destination.
    """

    def __init__(
        self,
        destination: Path,
        progress: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> None:
        self.destination = destination
        self.folder = destination.with_name(destination.name + PARTIAL)
        self.total = 0
        self._done = 0
        self._files: dict[str, SourceFile] = {}
        self._progress = progress
        self._cancelled = cancelled

    def begin(self) -> None:
        """Make an empty folder; what an earlier attempt left is removed."""
        remove_tree(self.folder)
        self.folder.mkdir(parents=True)

    def expect(self, total: int) -> None:
        """Say how many bytes will come.

        Raises:
            InsufficientDisk: they would not fit.
        """
        self.total = total
        require_space(self.folder, total)

    def create(self, path: str) -> FileIntake:
        """Begin a file of the source, at that relative path."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return FileIntake(self, path, target)

    def has(self, path: str) -> bool:
        """True when that file was received."""
        return path in self._files

    def read(self, path: str) -> bytes:
        """Content of a file that was received."""
        return (self.folder / path).read_bytes()

    def add(self, file: SourceFile) -> None:
        """Take a file for received and verified."""
        self._files[file.path] = file

    def check_cancelled(self) -> None:
        """Raises FetchCancelled when the caller asked to stop."""
        if self._cancelled.is_set():
            raise FetchCancelled

    def advance(self, path: str, count: int) -> None:
        """Count bytes (negative when they are received again) and tell of it."""
        self._done += count
        total = max(self.total, self._done)
        self._progress(
            Progress(
                phase="downloading",
                step=path,
                message=f"{path}: {self._done / _MB:.1f} of {total / _MB:.1f} MB",
                fraction=self._done / total if total else None,
                bytes_done=self._done,
                bytes_total=total,
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
        for folder in {self.folder / file.path for file in files}:
            sync_folder(folder.parent)
        remove_tree(self.destination)
        self.folder.rename(self.destination)
        sync_folder(self.destination.parent)
        return source

    def discard(self) -> None:
        """Remove what came so far."""
        remove_tree(self.folder)


class FileIntake:
    """One file being received. `received` counts its bytes so far."""

    def __init__(self, intake: Intake, path: str, target: Path) -> None:
        self.path = path
        self.received = 0
        self._intake = intake
        self._handle = target.open("wb")
        self._sha256 = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            FetchCancelled.
        """
        self._intake.check_cancelled()
        self._handle.write(chunk)
        self._sha256.update(chunk)
        self.received += len(chunk)
        self._intake.advance(self.path, len(chunk))

    def restart(self) -> None:
        """Forget what came so far: it will come again from the beginning."""
        self._intake.advance(self.path, -self.received)
        self._handle.seek(0)
        self._handle.truncate()
        self._sha256 = hashlib.sha256()
        self.received = 0

    def close(self) -> SourceFile:
        """Write it to the disk; the file is not yet taken for verified (see `Intake.add`)."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        return SourceFile(self.path, self.received, self._sha256.hexdigest())

    def abandon(self) -> None:
        """Close the file without a thought for its content."""
        self._handle.close()


def received_before(destination: Path, cancelled: threading.Event) -> FetchedSource | None:
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


def _digest(path: Path, cancelled: threading.Event) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            if cancelled.is_set():
                raise FetchCancelled
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()
