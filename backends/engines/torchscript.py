"""TorchScript: graphs traced by `torch.jit.trace`, for models that ONNX cannot take.

Its stub imports torch (some 200 MB and a second); all others do without.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

# Read when torch loads its OpenMP: threads that wait for each other otherwise spin, and where
# anything else wants the cores, a run takes five to ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

from backends.engines import BatchCost
from backends.errors import EngineError
from backends.machine import return_free_memory, usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# As ONNX Runtime's on the CPU; a call goes through more of Python and the interpreter of graphs.
_CPU_TOKENS_PER_CORE = 320
_CPU_CALL_TOKENS = 64
_CUDA_COST = BatchCost(max_tokens=16_384, call_tokens=1_024)


class TorchScriptEngine:
    """One traced module; its inputs are positional, in the order of the manifest's names."""

    def __init__(
        self,
        module: Any,
        input_names: Sequence[str],
        output_names: Sequence[str],
        *,
        device: str,
        cost: BatchCost,
    ) -> None:
        self._module = module
        self._inputs = list(input_names)
        self._outputs = list(output_names)
        self.device = device
        self.cost = cost

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the module once; see `Engine.run`."""
        try:
            with torch.inference_mode():
                given = [torch.from_numpy(inputs[name]).to(self.device) for name in self._inputs]
                result = self._module(*given)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise EngineError(f"PyTorch failed on {self.device}: {_line(error)}") from error
        outputs = result if isinstance(result, tuple | list) else (result,)
        if len(outputs) != len(self._outputs):
            raise EngineError(
                f"The graph returned {len(outputs)} outputs instead of {len(self._outputs)}."
            )
        return {name: _array(output) for name, output in zip(self._outputs, outputs, strict=True)}


def _array(output: torch.Tensor) -> NDArray[Any]:
    # bf16 is unknown to NumPy.
    kept = output.float() if output.is_floating_point() else output
    array: NDArray[Any] = np.ascontiguousarray(kept.cpu().numpy())
    return array


def open_graph(
    model_file: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    precision: str = "fp32",
    device_id: int = 0,
) -> TorchScriptEngine:
    """Open a file of `torch.jit.save`; see `open_engine`. On CUDA where torch can use it.

    Raises:
        EngineError: the file is no such module, or the precision is not fp32.
    """
    if precision != "fp32":
        raise EngineError(f"TorchScript runs graphs as they were traced, in fp32, not {precision}.")
    cuda = torch.cuda.is_available() and device_id < torch.cuda.device_count()
    device = f"cuda:{device_id}" if cuda else "cpu"
    cores = usable_cores()
    torch.set_num_threads(cores)
    try:
        with warnings.catch_warnings():
            # torch.jit is deprecated in favour of torch.export, which takes no fewer graphs.
            warnings.simplefilter("ignore")
            load: Any = torch.jit.load
            module = load(str(model_file), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"PyTorch cannot open {model_file.name}: {_line(error)}") from error
    return_free_memory()
    cost = BatchCost(max_tokens=_CPU_TOKENS_PER_CORE * cores, call_tokens=_CPU_CALL_TOKENS)
    _log.info("%s runs on %s with %d threads", model_file.name, device, cores)
    return TorchScriptEngine(
        module, input_names, output_names, device=device, cost=_CUDA_COST if cuda else cost
    )


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return " ".join(str(error).split())[:500]
