"""Disk space, and files that are either there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controlplane.errors import InsufficientDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MB = 1024 * 1024
# Left free for the database and the logs, which must be able to tell of the full disk.
RESERVE_BYTES = 64 * _MB


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes fit where `folder` is, or will be, with some to spare.

    Raises:
        InsufficientDisk.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + RESERVE_BYTES:
        raise InsufficientDisk(str(folder), (needed + RESERVE_BYTES) / _MB, free / _MB)


@contextmanager
def reporting_full_disk(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Turn "no space left" of the block into a fact that names the folder.

    Args:
        needed: bytes that the whole of it takes, asked for when it has failed.

    Raises:
        InsufficientDisk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        raise InsufficientDisk(str(folder), needed() / _MB, free / _MB) from error


def remove_tree(folder: Path) -> None:
    """Delete a folder, or what is left of it; a link is deleted, not what it points to."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink(missing_ok=True)
    elif folder.exists():
        shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
