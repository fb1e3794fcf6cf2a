"""Converters that fork from one process that has imported torch and transformers.

Importing them is nine tenths of a small model's conversion, and most conversions of the tests are
means: of a model that is installed, synced or served. A server started with `ENVIRONMENT` in its
environment runs `python -m converters convert` as always; there `sitecustomize.py`, which Python
imports by itself, hands arguments, environment and pipes to the parent of all, which forks. What
tests the converter as a process (its start, its death, its limits) goes without `ENVIRONMENT`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SOCKET = "CONVERTERS_FORK_AT"
ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """For whoever is to start converters by fork; empty where the test run has no parent."""
    if SOCKET not in os.environ:
        return {}
    path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(part for part in path if part)}


def fork_converters(patched: pytest.MonkeyPatch) -> None:
    """Those that this process starts from now on."""
    for name, value in environment().items():
        patched.setenv(name, value)


class Parent:
    """The process that forks; started with the test run, importing nothing before it is asked."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forking-")
        address = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)  # from now on clients find somebody
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forking.parent", str(listener.fileno()), address],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                cwd=ROOT,
            )
        os.environ[SOCKET] = address

    def end(self) -> None:
        """Also happens by itself when this process dies, which closes the pipe."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        del os.environ[SOCKET]
        self._folder.cleanup()
