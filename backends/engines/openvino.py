"""OpenVINO on the CPU: reads the same ONNX file as ONNX Runtime, and computes in bf16 where it can.

Properties: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

from __future__ import annotations

import logging
import queue
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.engines import BatchCost, require_names
from backends.errors import EngineError
from backends.lanes import beside_others
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
# What each precision asks of the plugin: the hint, and the capability it needs. An int8 graph has
# int8 weights: they are multiplied in bf16 where the processor has it, which is closer to PyTorch
# and faster than what the plugin does with an f32 hint, int8 activations with a scale per 32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}

# Measured with MiniLM on two cores (docs/benchmarks.md): every new shape costs the choice and often
# the compilation of kernels, so lengths are rounded up.
_TOKENS_PER_CORE = 320
_CALL_TOKENS = 32
_ROUND_LENGTH = 16
# Kernels kept, by shape; the plugin's default, 5,000, lets texts of all lengths pile them up.
_KERNELS_KEPT = 1_000

# Two threads share a run of a small graph badly: each of its hundred steps is some 20 microseconds
# of work, and all wait for the last at each. Runs beside each other wait for nothing. A large graph
# keeps all threads on one run, which halves the time that somebody alone waits for an answer.
_SMALL_GRAPH = 256 * 2**20
# Each lane has buffers of its own (some 20 MB for MiniLM), so a machine of many cores gets few
# lanes of several threads.
_MOST_LANES = 4


class OpenVinoEngine:
    """A graph, compiled once for all threads and, where it is small, once more for lanes.

    `run` may be called from `cost.lanes` threads at a time (`backends.lanes`); elsewhere by one.
    """

    device = "cpu"

    def __init__(
        self, wide: Any, narrow: Any | None, output_names: Sequence[str], *, cost: BatchCost
    ) -> None:
        """
        Args:
            wide: compiled for one run at a time.
            narrow: for `cost.lanes` of them; None where there is one lane.
        """
        self._outputs = list(output_names)
        self._wide = _requests(wide, 1)
        self._narrow = self._wide if narrow is None else _requests(narrow, cost.lanes)
        self.cost = cost

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        idle = self._narrow if beside_others() else self._wide
        request = idle.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            return {name: _copied(request.get_tensor(name).data) for name in self._outputs}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {_line(error)}") from error
        finally:
            idle.put(request)


def _requests(compiled: Any, count: int) -> queue.SimpleQueue[Any]:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(count):
        requests.put(compiled.create_infer_request())
    return requests


def _copied(output: NDArray[Any]) -> NDArray[Any]:
    """The next run writes over the tensor."""
    return np.array(output, dtype=np.float32 if output.dtype.kind == "f" else output.dtype)


@dataclass(frozen=True)
class Lanes:
    """How the cores are shared out among runs.

    Attributes:
        count: runs at a time.
        threads: of each.
    """

    count: int
    threads: int


def lanes_for(graph_bytes: int, cores: int) -> Lanes:
    """A small graph runs several times at once, each with few threads; a large one with all."""
    if graph_bytes > _SMALL_GRAPH:
        return Lanes(1, cores)
    threads = -(-cores // _MOST_LANES)
    return Lanes(cores // threads, threads)


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
    capabilities = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    _require(capabilities, precision)
    hint = _hint(capabilities, precision)
    lanes = lanes_for(_bytes_of(model_file), usable_cores())
    if precision == "int8":
        # Compiled for streams, an int8 graph may compute something else (cosine 0.62 instead of
        # 0.99 with a tiny BERT): what serves must be what was measured.
        lanes = Lanes(1, usable_cores())
    try:
        model = core.read_model(model_file)
        inputs = {tensor.any_name for tensor in model.inputs}
        outputs = {name for tensor in model.outputs for name in tensor.names}
        require_names(model_file.name, inputs, outputs, input_names, output_names)
        wide = core.compile_model(model, DEVICE, _config(hint, Lanes(1, usable_cores())))
        narrow = None
        if lanes.count > 1:
            narrow = core.compile_model(model, DEVICE, _config(hint, lanes))
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot open {model_file.name}: {_line(error)}") from error
    del model  # it holds the weights once more
    return_free_memory()
    cost = BatchCost(
        max_tokens=_TOKENS_PER_CORE * lanes.threads,
        call_tokens=_CALL_TOKENS,
        round_length=_ROUND_LENGTH,
        lanes=lanes.count,
    )
    text = "%s runs on the CPU in %s, %d at a time with %d threads each"
    _log.info(text, model_file.name, precision, lanes.count, lanes.threads)
    return OpenVinoEngine(wide, narrow, output_names, cost=cost)


def _require(capabilities: Sequence[str], precision: str) -> None:
    """Refuse a precision that the processor would only emulate, or the plugin silently ignore.

    Raises:
        EngineError: naming those it has.
    """
    if _CAPABILITIES.get(precision) not in capabilities:
        has = [name for name, needed in _CAPABILITIES.items() if needed in capabilities]
        raise EngineError(f"This processor has no {precision} for OpenVINO; it has {_and(has)}.")


def _bytes_of(model_file: Path) -> int:
    """Of a graph and the weights in files beside it (`model.onnx.data`, `model.bin`)."""
    files = model_file.parent.glob(f"{model_file.stem}.*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _hint(capabilities: Sequence[str], precision: str) -> str:
    return "bf16" if precision == "int8" and "BF16" in capabilities else _HINTS[precision]


def _config(hint: str, lanes: Lanes) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": lanes.count,
        "INFERENCE_NUM_THREADS": lanes.count * lanes.threads,
        # Pinned threads of two models, each sure of the first cores, would share these only.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": str(_KERNELS_KEPT),
    }


def _and(names: Sequence[str]) -> str:
    return ", ".join(names)


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return " ".join(str(error).split())[:500]
