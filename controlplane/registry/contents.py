"""Contents of files: their digest, the same one at a second place, and notes on half ones."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK = 1024 * 1024
_FICLONE = 0x40049409  # linux/fs.h
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Note(msgspec.Struct, frozen=True):
    """What a partial file is of.

    Attributes:
        owner: the model it is received for.
        path: the file's path in its source.
        validator: names the content at the source (digest, ETag); only the same one is continued.
    """

    owner: str
    path: str
    validator: str | None = None


def note_path(part: Path) -> Path:
    """Where the note on a partial file is."""
    return part.with_name(part.name + ".json")


def read_note(part: Path) -> Note | None:
    """The note on a partial file; None when there is none that can be read."""
    try:
        return msgspec.json.decode(note_path(part).read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError):
        return None


def write_note(part: Path, note: Note) -> None:
    """Keep a note on a partial file, whole or not at all."""
    path = note_path(part)
    staged = path.with_suffix(".new")
    staged.write_bytes(msgspec.json.encode(note))
    staged.replace(path)


def digest_of(
    path: Path,
    *,
    algorithm: str = "sha256",
    prefix: bytes = b"",
    check: Callable[[], None] = lambda: None,
) -> str:
    """The hexadecimal digest of a file.

    Args:
        prefix: hashed before the content.
        check: called for each megabyte; raises to give up.
    """
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            check()
            digest.update(chunk)
    return digest.hexdigest()


def place(blob: Path, target: Path) -> None:
    """The blob's content at `target`: linked, else cloned, else copied."""
    for way in (os.link, _clone, _copy):
        try:
            way(blob, target)
        except FileNotFoundError:
            raise
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in _FULL or way is _copy:
                raise
        else:
            return


def _clone(blob: Path, target: Path) -> None:
    """Share the blocks until one of them is written (btrfs, xfs)."""
    with blob.open("rb") as source, target.open("wb") as copy:
        fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())


def _copy(blob: Path, target: Path) -> None:
    with blob.open("rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
        copy.flush()
        os.fsync(copy.fileno())
