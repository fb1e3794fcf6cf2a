"""OpenVINO on the CPU: reads the same ONNX file as ONNX Runtime, and computes in bf16 where it can.

Properties: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.engines import BatchCost
from backends.errors import EngineError
from backends.machine import return_free_memory, usable_cores

# The model converter reports to Intel when it is imported, and openvino imports it where it can;
# None in its place is an ImportError, which openvino takes for an installation without it.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
import openvino  # noqa: E402 - only after that

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

DEVICE = "CPU"
# What each precision asks of the plugin: the hint, and the capability it needs. An int8 graph
# says itself, with its QuantizeLinear nodes, what is computed in int8; the rest stays f32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}

# Measured with MiniLM on two cores (docs/engines.md): every new shape costs the choice and often
# the compilation of kernels, so lengths are rounded up.
_TOKENS_PER_CORE = 320
_CALL_TOKENS = 32
_ROUND_LENGTH = 16
# Kernels kept, by shape; the plugin's default, 5,000, lets texts of all lengths pile them up.
_KERNELS_KEPT = 1_000


class OpenVinoEngine:
    """One compiled graph and one request for it; `run` may be called from one thread at a time."""

    device = "cpu"

    def __init__(self, compiled: Any, output_names: Sequence[str], *, cost: BatchCost) -> None:
        self._outputs = list(output_names)
        self._request = compiled.create_infer_request()
        self.cost = cost

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        try:
            self._request.infer(dict(inputs), share_inputs=True)
            return {name: self._output(name) for name in self._outputs}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {_line(error)}") from error

    def _output(self, name: str) -> NDArray[Any]:
        output = self._request.get_tensor(name).data
        # A copy: the next run writes over the tensor.
        kind = np.float32 if output.dtype.kind == "f" else output.dtype
        return np.array(output, dtype=kind)


def open_graph(
    model_file: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    precision: str = "fp32",
    device_id: int = 0,  # noqa: ARG001
) -> OpenVinoEngine:
    """Open an ONNX file (or OpenVINO's own .xml); see `open_engine`. It runs on the CPU.

    Raises:
        EngineError: this processor has no such precision, the file is no graph that OpenVINO can
            run, or its inputs or outputs are not the ones named.
    """
    core = openvino.Core()
    _require(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"), precision)
    cores = usable_cores()
    try:
        model = core.read_model(model_file)
        _check_names(model, model_file.name, input_names, output_names)
        compiled = core.compile_model(model, DEVICE, _config(precision, cores))
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot open {model_file.name}: {_line(error)}") from error
    del model  # it holds the weights once more
    return_free_memory()
    cost = BatchCost(
        max_tokens=_TOKENS_PER_CORE * cores, call_tokens=_CALL_TOKENS, round_length=_ROUND_LENGTH
    )
    _log.info("%s runs on the CPU in %s with %d threads", model_file.name, precision, cores)
    return OpenVinoEngine(compiled, output_names, cost=cost)


def _require(capabilities: Sequence[str], precision: str) -> None:
    """Refuse a precision that the processor would only emulate, or the plugin silently ignore.

    Raises:
        EngineError: naming those it has.
    """
    if _CAPABILITIES.get(precision) not in capabilities:
        has = [name for name, needed in _CAPABILITIES.items() if needed in capabilities]
        raise EngineError(f"This processor has no {precision} for OpenVINO; it has {_and(has)}.")


def _config(precision: str, cores: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # One run at a time, on all cores: Triton's batcher has gathered the requests already.
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": cores,
        # Pinned threads of two models, each sure of the first cores, would share these only.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": str(_KERNELS_KEPT),
    }


def _check_names(
    model: Any, file_name: str, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    inputs = {tensor.any_name for tensor in model.inputs}
    outputs = {name for tensor in model.outputs for name in tensor.names}
    if inputs != set(input_names):
        raise EngineError(
            f"{file_name} takes {', '.join(sorted(inputs))}, "
            f"but its manifest says {', '.join(sorted(input_names))}."
        )
    for name in output_names:
        if name not in outputs:
            raise EngineError(f"{file_name} has no output {name!r}.")


def _and(names: Sequence[str]) -> str:
    return ", ".join(names)


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return " ".join(str(error).split())[:500]
