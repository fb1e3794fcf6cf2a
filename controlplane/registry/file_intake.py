"""One file on its way in: appended to its partial file and hashed, continued, or begun again."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

from controlplane.registry.contents import Note, note_path, read_note, write_note
from controlplane.registry.files import SourceFile

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.intake import Intake

_CHUNK = 1024 * 1024


class FileIntake:
    """One file being received.

    Attributes:
        received: bytes so far.
        resumed: bytes of these that an earlier attempt had left.
        validator: names the content they are of; None when the source has no name for it.
    """

    def __init__(
        self, intake: Intake, path: str, part: Path, *, validator: str | None, keep: bool
    ) -> None:
        self.path = path
        self.part = part
        self.received = self.resumed = 0
        self._intake = intake
        self._keep = keep
        self._done = False
        self._sha256 = hashlib.sha256()
        note = read_note(part)
        left = note.validator if keep and note is not None and part.exists() else None
        resumable = left is not None and validator in (None, left)
        self.validator = left if resumable else validator
        self._handle = part.open("r+b" if resumable else "wb")
        if resumable:
            self._read_again()
        self._write_note()

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            FetchCancelled, SourceRefused.
        """
        self._intake.check_cancelled()
        self._intake.check_size(self.received + len(chunk))
        try:
            self._handle.write(chunk)
            self._handle.flush()  # to the system: a killed process has lost none of it
        except OSError as error:
            # A full disk is needed by others more than by half a file.
            self._keep = self._keep and error.errno not in (errno.ENOSPC, errno.EDQUOT)
            raise
        self._sha256.update(chunk)
        self.received += len(chunk)
        self._intake.advance(self.path, len(chunk))

    def restart(self, validator: str | None = None) -> None:
        """Forget what came so far: it will come again from the beginning."""
        if self.received:
            self._intake.advance(self.path, -self.received)
        self._handle.seek(0)
        self._handle.truncate()
        self._sha256 = hashlib.sha256()
        self.received = self.resumed = 0
        if validator is not None:
            self.name_content(validator)

    def name_content(self, validator: str | None) -> None:
        """Note of which content the bytes are."""
        if validator != self.validator:
            self.validator = validator
            self._write_note()

    @property
    def name(self) -> str | None:
        """The validator, where it holds beyond this fetch."""
        return self.validator if self._keep else None

    def sync(self) -> SourceFile:
        """Write everything to the disk; what was received."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return SourceFile(self.path, self.received, self._sha256.hexdigest())

    def finish(self) -> SourceFile:
        """The file is whole, and from now on somebody else's."""
        file = self.sync()
        self._done = True
        return file

    def forget(self) -> None:
        """It is of no use: nothing of it will be kept."""
        self._keep = False

    def leave(self) -> None:
        """Close it. Unless it is finished or may be continued, it is removed."""
        try:
            self._handle.close()
        finally:
            kept = self._keep and self.validator is not None and self.received > 0
            if self._done or not kept:
                note_path(self.part).unlink(missing_ok=True)
            if not self._done and not kept:
                self.part.unlink(missing_ok=True)

    def _read_again(self) -> None:
        while chunk := self._handle.read(_CHUNK):
            self._intake.check_cancelled()
            self._sha256.update(chunk)
            self.received += len(chunk)
        self.resumed = self.received
        self._intake.advance(self.path, self.received, came=False)

    def _write_note(self) -> None:
        if self._keep and self.validator is not None:
            write_note(self.part, Note(self._intake.owner, self.path, self.validator))
