"""`python -m backends.measure JOB.json`: runs a graph on given inputs, and says how fast it was.

The converter starts it, once per candidate, with the very code that will serve the model; it holds
the outputs against PyTorch's itself. The job:

    {"engine": …, "precision": …, "model_file": …, "input_names": […], "output_names": […],
     "timed": {"1": FILE.npz, …}, "checked": [FILE.npz, …], "outputs": FOLDER, "seconds": 0.3}

The files hold the graph's inputs by name. The last line on stdout is the answer: seconds of each
timed run, memory and the files with the outputs of `checked`, or why there is none:

    {"seconds": {"1": [0.002, …]}, "memory_mb": 210.5, "device": "cpu", "outputs": [FILE.npz, …]}
    {"reason": "This processor has no bf16 …"}
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.engines import open_engine
from backends.errors import BackendError, EngineError
from backends.lanes import cost_for, in_lanes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backends.engines import Engine

    Inputs = Mapping[str, NDArray[Any]]

_DEATH_SIGNAL = 1  # prctl(2), PR_SET_PDEATHSIG
_LEAST_RUNS, _MOST_RUNS = 3, 15
_SAME = 0.999  # cosine of two runs of one graph in one precision
_SMAPS = Path("/proc/self/smaps_rollup")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one job; 0 also when the engine cannot: the answer says so."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        answer = measure(job)
    except BackendError as error:
        answer = {"reason": str(error)}
    except MemoryError:
        answer = {"reason": "It ran out of memory."}
    print(json.dumps(answer), flush=True)
    return 0


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one job.

    Raises:
        BackendError: the engine cannot open the graph, or not run it.
    """
    engine = open_engine(
        job["engine"],
        Path(job["model_file"]),
        input_names=job["input_names"],
        output_names=job["output_names"],
        precision=job["precision"],
    )
    checked = [_keep(engine, Path(file), Path(job["outputs"])) for file in job["checked"]]
    limit = float(job["seconds"])
    seconds = {
        name: _times(engine, _read(Path(file)), limit) for name, file in job["timed"].items()
    }
    return {
        "seconds": seconds,
        "memory_mb": round(_resident_mb(), 1),
        "device": engine.device,
        "outputs": checked,
    }


def _keep(engine: Engine, inputs: Path, folder: Path) -> str:
    """Run once and keep the outputs."""
    target, arrays = folder / inputs.name, _read(inputs)
    outputs = engine.run(arrays)
    if engine.cost.lanes > 1:
        _check_lanes(engine, arrays, outputs)
    np.savez(target, **outputs)
    return str(target)


def _check_lanes(engine: Engine, inputs: Inputs, outputs: Inputs) -> None:
    """Check that runs beside others compute the same: only `outputs` are compared with PyTorch.

    Raises:
        EngineError: they do not (OpenVINO's int8 weights compiled for streams: cosine 0.62).
    """
    beside: list[Inputs] = []
    in_lanes([inputs] * 2, lambda job: beside.append(engine.run(job)), 2)
    cosines = [_cosine(run[name], outputs[name]) for run in beside for name in outputs]
    if not min(cosines, default=1.0) >= _SAME:
        raise EngineError("Runs beside each other do not compute what a run alone does.")


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _times(engine: Engine, inputs: Inputs, limit: float) -> list[float]:
    """Seconds of each of 3 to 15 runs, after one that is not counted; no more than about `limit`
    seconds in all, unless 3 take longer."""
    parts = _parts(inputs, engine)
    in_lanes(parts, engine.run, len(parts))
    times: list[float] = []
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and sum(times) < limit):
        begun = time.perf_counter()
        in_lanes(parts, engine.run, len(parts))
        times.append(time.perf_counter() - begun)
    return times


def _parts(inputs: Inputs, engine: Engine) -> list[Inputs]:
    """The batch as a backend cuts a request of it."""
    rows = min(len(array) for array in inputs.values())
    lanes = min(cost_for(engine.cost, rows, 1).lanes, rows)
    cut = {name: np.array_split(array, lanes) for name, array in inputs.items()}
    return [dict(zip(cut, part, strict=True)) for part in zip(*cut.values(), strict=True)]


def _read(path: Path) -> Inputs:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _resident_mb() -> float:
    """Resident memory of this process, in MB; 0 where /proc does not tell."""
    try:
        lines = _SMAPS.read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [line.split() for line in lines if line.startswith("Rss:")]
    return float(sizes[0][1]) / 1024 if sizes else 0.0


if __name__ == "__main__":
    # It must not outlive a converter that is killed.
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    sys.exit(main())
