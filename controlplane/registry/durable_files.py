"""Files and folders that are whole on disk, also after a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

from controlplane.errors import InsufficientDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def take(source: Path, target: Path) -> Path:
    """Move a file or folder, also to another file system."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, target)
        delete(source)
    return target


def write(path: Path, text: str) -> None:
    """Write a file, and have it on disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Have a folder on disk with all that is in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on disk.

    A rename may reach the disk before the bytes that it names: after a power cut what was renamed
    would be there, with empty files.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible; no error when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(root: Path, needed_mb: float) -> Iterator[None]:
    """Say in InsufficientDisk that the disk below `root` is full, where that ends what is done."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_mb = shutil.disk_usage(root).free / 2**20
            raise InsufficientDisk(str(root), needed_mb, free_mb) from error
        raise
