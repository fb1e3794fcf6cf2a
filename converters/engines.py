"""Chooses the engine that serves a graph, by measuring those that this machine has.

Generic: whoever exports a graph says what it is and what PyTorch computes (`Graph`), and writes
what comes back (`Chosen`) into the manifest as `engine`, `precision`, `candidates`, and as the file
to serve. The rules are in `candidates.py`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.candidates import (
    Candidate,
    Measured,
    best,
    candidates,
    nothing_to_gain,
    refusal,
    table,
)
from converters.errors import EngineUnavailable, one_line
from converters.likeness import min_cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

INT8 = "int8"
# How far the outliers of activations are moved into the weights for ONNX Runtime (`quantize`), the
# most promising first: with MiniLM a cosine of 0.993 at 0.7, 0.972 at 0.5, 0.970 at 0.85, and 0.970
# without.
STRENGTHS = (0.7, 0.6, 0.8)
# Longest for the runs of one batch size of one candidate, unless three runs take longer.
_SECONDS = 0.3
# One candidate with everything: a large model takes half a minute to be opened.
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Graph:
    """An exported graph, and what it must compute.

    Attributes:
        files: by kind (`onnx`, `torchscript`); all of them compute the same.
        input_names, output_names: the graph's own.
        timed: inputs by batch size (1, 8, 32), as the model will get them.
        checked: inputs, and what PyTorch in fp32 computed for them by output name; arrays whose
            first dimension is the batch.
    """

    files: Mapping[str, Path]
    input_names: Sequence[str]
    output_names: Sequence[str]
    timed: Mapping[int, Arrays]
    checked: Sequence[tuple[Arrays, Arrays]]


@dataclass(frozen=True)
class Chosen:
    """The engine that is to serve a graph.

    Attributes:
        model_file: of the graph's files, the one that it reads.
        min_cosine: to PyTorch, the worst over all outputs.
        table: what was measured, for the manifest's `candidates`.
    """

    engine: str
    precision: str
    model_file: Path
    min_cosine: float
    table: list[dict[str, Any]]


def choose(
    graph: Graph,
    *,
    engine: str | None = None,
    precision: str | None = None,
    progress: Callable[[float, str], None] = lambda _share, _message: None,
) -> Chosen:
    """The fastest engine that computes what PyTorch does, of those the user left to choose from.

    The default, ONNX Runtime in fp32, is measured first; where it is so fast that nobody could
    tell a faster one, nothing else is. int8 is made from the ONNX file when it is asked for, and
    takes that file's place in its folder when it is chosen.

    Args:
        engine, precision: what the user asked for; None leaves it open.
        progress: told the share done and what is measured now.

    Raises:
        EngineUnavailable: what was asked for is not available here or too far from PyTorch; the
            message says which, and what there is.
    """
    wanted = candidates([*graph.files], engine, precision)
    if not wanted:
        asked = " ".join(part for part in (engine, precision) if part)
        raise EngineUnavailable(f"No engine of this model is {asked}; {_there_is(graph)}.")
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="modelmora-engines-") as place:
        bench = _Bench(graph, Path(place))
        for number, candidate in enumerate(wanted):
            progress(number / len(wanted), f"measuring {candidate}")
            measured.append(bench.measure(candidate))
            if nothing_to_gain(measured[0]):
                break
        chosen = best(measured)
        if chosen is None:
            raise EngineUnavailable(_why_none(measured, graph))
        model_file = bench.file(chosen.candidate)
        if chosen.candidate.precision == INT8:
            model_file = _take_place(model_file, graph.files["onnx"])
    return Chosen(
        engine=chosen.candidate.engine,
        precision=chosen.candidate.precision,
        model_file=model_file,
        min_cosine=chosen.min_cosine,
        table=table(measured, chosen),
    )


def _take_place(quantized: Path, original: Path) -> Path:
    """The int8 graph instead of the one that it was made of."""
    target = original.with_name(f"{original.stem}.int8.onnx")
    shutil.move(quantized, target)
    for file in (original, original.with_name(f"{original.name}.data")):
        file.unlink(missing_ok=True)
    return target


def _why_none(measured: Sequence[Measured], graph: Graph) -> str:
    reasons = [f"{one.candidate}: {one.reason or refusal(one)}" for one in measured]
    return f"{' '.join(reasons)} For this model {_there_is(graph)}."


def _there_is(graph: Graph) -> str:
    """What can be asked for; whether the processor has it, only trying tells."""
    known = sorted({c for p in (None, "fp16", "int8") for c in candidates([*graph.files], None, p)})
    return f"there are {', '.join(map(str, known))}"


class _Bench:
    """Runs candidates in processes of their own, on inputs that are written once."""

    def __init__(self, graph: Graph, place: Path) -> None:
        self._graph = graph
        self._place = place
        self._timed = {
            str(size): _write(place / f"timed-{size}.npz", arrays)
            for size, arrays in graph.timed.items()
        }
        self._checked = [
            _write(place / f"checked-{number}.npz", inputs)
            for number, (inputs, _) in enumerate(graph.checked)
        ]

    def file(self, candidate: Candidate) -> Path:
        """The graph's file that a candidate reads."""
        if candidate.precision == INT8:
            return self._place / f"{candidate.engine}-int8.onnx"
        kind = "torchscript" if candidate.engine == "torchscript" else "onnx"
        return self._graph.files[kind]

    def measure(self, candidate: Candidate) -> Measured:
        """Measure one; whatever goes wrong is its reason."""
        if candidate.precision != INT8:
            return self._measure(candidate)
        found = Measured(candidate, reason="It was not tried.")
        for quantize in self._quantizers(candidate):
            try:
                quantize()
            except Exception as error:  # noqa: BLE001 - it takes what graphs it takes
                return Measured(candidate, reason=f"It cannot be quantised: {one_line(error)}.")
            found = self._measure(candidate)
            if found.passes or found.reason:
                break
        return found

    def _quantizers(self, candidate: Candidate) -> list[Callable[[], None]]:
        """Ways to make the int8 file that this engine reads, the most promising first."""
        from converters.quantize import quantize, quantize_weights

        source, target = self._graph.files["onnx"], self.file(candidate)
        if candidate.engine == "openvino":
            return [partial(quantize_weights, source, target)]
        inputs = [inputs for inputs, _ in self._graph.checked]
        return [partial(quantize, source, target, inputs, strength) for strength in STRENGTHS]

    def _measure(self, candidate: Candidate) -> Measured:
        outputs = self._place / str(candidate).replace(" ", "-")
        outputs.mkdir(exist_ok=True)
        job = {
            "engine": candidate.engine,
            "precision": candidate.precision,
            "model_file": str(self.file(candidate)),
            "input_names": list(self._graph.input_names),
            "output_names": list(self._graph.output_names),
            "timed": self._timed,
            "checked": self._checked,
            "outputs": str(outputs),
            "seconds": _SECONDS,
        }
        answer = _run(job, outputs / "job.json")
        if "reason" in answer:
            return Measured(candidate, reason=str(answer["reason"]))
        return Measured(
            candidate,
            seconds={int(size): times for size, times in answer["seconds"].items()},
            min_cosine=self._compare(answer["outputs"]),
            memory_mb=answer["memory_mb"],
            device=answer["device"],
        )

    def _compare(self, files: Sequence[str]) -> float:
        pairs = zip(self._graph.checked, files, strict=True)
        found = [min_cosine(expected, _read(Path(file))) for (_, expected), file in pairs]
        # min() of Python keeps or loses a NaN by its place.
        return float(np.min(found)) if found else math.nan


def _run(job: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The answer of `python -m backends.measure`; a reason when it died."""
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "backends.measure", str(path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_TIMEOUT,
            check=False,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"It took longer than {_TIMEOUT:.0f} s."}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"reason": f"Its process ended with status {done.returncode} and no answer."}
    return answer


def _write(path: Path, arrays: Arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
