"""ONNX Runtime: on CUDA where a device really works, on the CPU otherwise."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.engines import BatchCost, require_names
from backends.errors import EngineError
from backends.machine import cuda_devices, return_free_memory, usable_cores

# Read once, at the import: since 1.29 ONNX Runtime otherwise keeps a thread that reports to
# Microsoft and leaves a file in the temporary folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# ONNX Runtime's exceptions have no base of their own short of Exception.
_FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(_native).values()
        if isinstance(kind, type) and kind.__base__ is Exception
    ),
)
_SEVERITY_ERROR, _SEVERITY_FATAL = 3, 4

# Measured with MiniLM on two cores (docs/benchmarks.md): short texts gain up to some 600 tokens
# a run, long ones lose beyond it because attention no longer fits the cache; one run costs about
# as much as 32 more tokens. The limit grows with the cores that share a run.
_CPU_TOKENS_PER_CORE = 320
_CPU_CALL_TOKENS = 32
# A GPU is idle below thousands of tokens, and starting its kernels costs about a thousand more.
_CUDA_COST = BatchCost(max_tokens=16_384, call_tokens=1_024)


class OnnxRuntimeEngine:
    """One session over one graph; `run` may be called from one thread at a time."""

    def __init__(
        self, session: Any, output_names: Sequence[str], *, device: str, cost: BatchCost
    ) -> None:
        self._session = session
        self._outputs = list(output_names)
        self.device = device
        self.cost = cost

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `Engine.run`."""
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except _FAILURES as error:
            raise EngineError(f"ONNX Runtime failed on {self.device}: {_line(error)}") from error
        return {name: _single(output) for name, output in zip(self._outputs, outputs, strict=True)}


def _single(output: NDArray[Any]) -> NDArray[Any]:
    return output.astype(np.float32, copy=False) if output.dtype.kind == "f" else output


def open_graph(
    model_file: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    precision: str = "fp32",  # noqa: ARG001
    device_id: int = 0,
) -> OnnxRuntimeEngine:
    """Open an ONNX file; see `open_engine`. The precision is in the file: it is not looked at.

    Raises:
        EngineError: the file is not a graph that ONNX Runtime can run, or its inputs or outputs
            are not the ones named.
    """
    engine = _open_on_cuda(model_file, output_names, device_id) or _open_on_cpu(
        model_file, output_names
    )
    inputs = {tensor.name for tensor in engine._session.get_inputs()}
    outputs = {tensor.name for tensor in engine._session.get_outputs()}
    require_names(model_file.name, inputs, outputs, input_names, output_names)
    return engine


def _open_on_cpu(model_file: Path, output_names: Sequence[str]) -> OnnxRuntimeEngine:
    cores = usable_cores()
    session = _session(model_file, ["CPUExecutionProvider"], threads=cores)
    # Reading the file leaves its size in freed heap pages: 30 MB of 90 for MiniLM.
    return_free_memory()
    cost = BatchCost(max_tokens=_CPU_TOKENS_PER_CORE * cores, call_tokens=_CPU_CALL_TOKENS)
    _log.info("%s runs on the CPU with %d threads", model_file.name, cores)
    return OnnxRuntimeEngine(session, output_names, device="cpu", cost=cost)


def _open_on_cuda(
    model_file: Path, output_names: Sequence[str], device_id: int
) -> OnnxRuntimeEngine | None:
    """The engine on a CUDA device; None, and a line in the log, when there is none that works."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    if device_id >= cuda_devices():
        return None  # the usual case on a CPU machine: nothing to complain about
    # TF32 would cut the products to 10 bits of mantissa: not the fp32 that was verified.
    options = {"device_id": device_id, "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    try:
        with _quiet_native_log(), contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
            session = _session(model_file, [("CUDAExecutionProvider", options)], threads=1)
    except (EngineError, OSError, RuntimeError) as error:
        _log.warning("CUDA device %d does not work, using the CPU: %s", device_id, _line(error))
        return None
    if "CUDAExecutionProvider" not in session.get_providers():
        _log.warning(
            "A CUDA device is there but ONNX Runtime %s cannot use it (its CUDA or cuDNN "
            "libraries are missing), using the CPU.",
            onnxruntime.__version__,
        )
        return None
    device = f"cuda:{device_id}"
    _log.info("%s runs on %s", model_file.name, device)
    return OnnxRuntimeEngine(session, output_names, device=device, cost=_CUDA_COST)


def _session(model_file: Path, providers: Sequence[Any], *, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory pattern is kept for every shape ever seen, and texts have many shapes.
    options.enable_mem_pattern = False
    # Threads that wait for work spin, by default for milliseconds; where anything else wants the
    # cores (the control plane, another model) that halves the throughput. 20 microseconds keep
    # the speed of spinning on an idle machine and most of that of sleeping on a busy one; handing
    # out work in ever smaller blocks keeps the threads from waiting for one that was interrupted.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    options.log_severity_level = _SEVERITY_ERROR
    try:
        return onnxruntime.InferenceSession(str(model_file), options, providers=list(providers))
    except _FAILURES as error:
        raise EngineError(f"ONNX Runtime cannot open {model_file.name}: {_line(error)}") from error


@contextlib.contextmanager
def _quiet_native_log() -> Any:
    """Silence ONNX Runtime's own words about CUDA: one line of ours says it."""
    onnxruntime.set_default_logger_severity(_SEVERITY_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_SEVERITY_ERROR)


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return " ".join(str(error).split())[:500]
