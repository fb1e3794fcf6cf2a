"""What only one server of a machine may have: its data directory and its ports."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import filelock

from controlplane.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


def own_data_dir(directory: Path) -> filelock.BaseFileLock:
    """Make the data directory where it is missing, and lock it until the lock's `release`.

    Two servers on one data directory would overwrite each other: the second is refused.

    Raises:
        StartupError: another server has it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(directory / "server.lock")
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise StartupError(
            f"Another ModelMora is running on the data directory {directory}. "
            "Stop it, or choose another directory with MODELMORA_DATA_DIR."
        ) from None
    except OSError as error:
        raise StartupError(
            f"The data directory {directory} cannot be written: {error.strerror}. "
            "Choose another with MODELMORA_DATA_DIR."
        ) from error
    return lock


def listen(host: str, port: int, key: str) -> socket.socket:
    """A socket that listens, on any free port for 0.

    Args:
        key: the setting that the port is from.

    Raises:
        StartupError: the port is taken, or the host is none of this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise StartupError(
            f"Cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}. "
            f"Stop what uses it, or choose another with MODELMORA_{key.upper()}."
        ) from error


def check_free(host: str, port: int, key: str) -> None:
    """Find out whether one could `listen` there, for whoever binds by itself and later."""
    if port:
        listen(host, port, key).close()
