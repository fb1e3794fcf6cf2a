"""What takes long to make and is made once: a tiny model, and a stopped server's home with it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import filelock

from tests.models import tiny_bert
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

TINY = "tests/tiny-bert"


def once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None], seconds: float = 200
) -> Path:
    """The folder `name` that `make` has made, the same one for all workers of the test run."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = shared / f"prepared-{name}"
    with filelock.FileLock(shared / f"prepared-{name}.lock", timeout=seconds):
        if not made.exists():
            unfinished = base / f"unfinished-{name}"
            make(unfinished)
            unfinished.rename(made)
    return made


def make_tiny(folder: Path) -> None:
    """A tiny BERT, written by this process: collecting the tests has imported torch already."""
    tiny_bert(folder)


def make_home(home: Path, model_id: str, source: Path, *, forking: bool = False) -> None:
    """The home of a stopped server with a model installed from the folder `source`."""
    service = Service(home, forking=forking)
    try:
        with service.start().client() as client:
            client.install(model_id, source_url=source.as_uri(), timeout=150)
        assert service.stop() == 0
    finally:
        service.end()


def copied(home: Path, to: Path) -> Path:
    """A copy of a server's home, with its hard links as the cache has them."""
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(home), str(to)], check=True)
    (to / "log").unlink(missing_ok=True)
    return to
