"""Traces a model with `torch.jit.trace`: for graphs that no ONNX exporter can take."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODEL_FILE = "model.torchscript.pt"
EXPORTER = "trace"


def trace(module: torch.nn.Module, example: Sequence[torch.Tensor], output: Path) -> Any:
    """Write `output`/model.torchscript.pt and return the traced module; inputs are positional.

    What Python decides while tracing is baked in: only for results that are verified on other
    shapes than the example's.

    Raises:
        Exception: whatever torch raises when it cannot trace the model.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # Deprecation of TorchScript and remarks on what tracing cannot see.
        warnings.simplefilter("ignore")
        jit: Any = torch.jit
        traced = jit.trace(module, tuple(example), check_trace=False)
        jit.save(traced, str(output / MODEL_FILE))
    return traced
