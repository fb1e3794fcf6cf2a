"""Engines execute an artefact's graph. One module per engine, imported only when it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

# Engine name in the manifest -> module with `open_graph`. A stub imports one engine only:
# each costs it tens of megabytes.
_MODULES = {"onnxruntime": "backends.engines.onnxruntime"}


@dataclass(frozen=True)
class BatchCost:
    """How an engine's run time grows with a batch, for cutting requests into sub-batches.

    A run takes about `call_tokens + rows x length`, in units of one token's time.

    Attributes:
        max_tokens: padded tokens (rows x length) beyond which a batch gains nothing.
        call_tokens: fixed cost of one run.
    """

    max_tokens: int
    call_tokens: int


class Engine(Protocol):
    """An opened graph: named INT64 tensors in, one FP32 tensor out."""

    @property
    def device(self) -> str:
        """Where it runs: `cpu` or `cuda:N`."""

    @property
    def cost(self) -> BatchCost:
        """What a batch costs on this device."""

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Run once; inputs `[batch, sequence]`, output `[batch, …]`.

        Raises:
            EngineError: with the engine's reason.
        """


class _EngineModule(Protocol):
    def open_graph(
        self, model_file: Path, input_names: Sequence[str], output_name: str, device_id: int
    ) -> Engine: ...


def open_engine(
    name: str,
    model_file: Path,
    *,
    input_names: Sequence[str],
    output_name: str,
    device_id: int = 0,
) -> Engine:
    """Open a graph with the engine of that name.

    Args:
        name: the manifest's `engine`.
        device_id: which CUDA device to use, where one works.

    Raises:
        EngineError: unknown engine, or the graph cannot be opened or is not as described.
    """
    if name not in _MODULES:
        raise EngineError(f"Unknown engine {name!r}; this backend has {', '.join(_MODULES)}.")
    module = cast("_EngineModule", importlib.import_module(_MODULES[name]))
    return module.open_graph(model_file, input_names, output_name, device_id)
