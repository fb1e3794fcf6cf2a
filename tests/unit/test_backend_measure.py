"""What is compared with PyTorch is what serves: runs alone and runs beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.engines import BatchCost
from backends.errors import EngineError
from backends.lanes import beside_others
from backends.measure import _keep

if TYPE_CHECKING:
    from pathlib import Path


class Engine:
    """Doubles its input; beside others it adds `error`."""

    device = "cpu"

    def __init__(self, error: float, lanes: int = 2) -> None:
        self.error = error
        self.cost = BatchCost(max_tokens=64, call_tokens=8, lanes=lanes)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        wrong = self.error if beside_others() else 0.0
        return {"y": (2 * inputs["x"] + wrong).astype(np.float32)}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.linspace(-1, 1, 12).reshape(3, 4))
    (tmp_path / "outputs").mkdir()
    return path


@pytest.mark.parametrize("engine", [Engine(0.0), Engine(1e-4), Engine(1.0, lanes=1)])
def test_outputs_are_kept(engine: Any, inputs: Path, tmp_path: Path) -> None:
    kept = np.load(_keep(engine, inputs, tmp_path / "outputs"))
    assert np.allclose(kept["y"], 2 * np.load(inputs)["x"])


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_lanes_that_compute_something_else_are_refused(
    error: float, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="beside each other"):
        _keep(Engine(error), inputs, tmp_path / "outputs")
