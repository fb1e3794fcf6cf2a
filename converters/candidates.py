"""Which engine runs a graph: the rules, without running anything (docs/engines.md)."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
# The least cosine to PyTorch in fp32, over all outputs of all verification inputs.
GATES: Mapping[str, float] = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}

# Runs of one graph on one machine differ by so much from one minute to the next; what runs told
# of their own spread counts when it is more, up to half: twice as fast is no accident.
_LEAST_NOISE, _MOST_NOISE = 0.10, 0.50
# Nobody can tell: with the largest batch in so little time, the engine is not what takes time.
NEGLIGIBLE_SECONDS = 0.005


@dataclass(frozen=True, order=True)
class Candidate:
    """An engine and what it computes in."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


# Both read an ONNX file; fp16 and int8 are tried only when they are asked for.
DEFAULT = Candidate("onnxruntime", "fp32")
TRACED = Candidate("torchscript", "fp32")
_BY_FILE: Mapping[str, tuple[Candidate, ...]] = {
    "onnx": (DEFAULT, Candidate("openvino", "fp32"), Candidate("openvino", "bf16")),
    "torchscript": (TRACED,),
}
_ON_REQUEST: Mapping[str, tuple[Candidate, ...]] = {
    "onnx": (
        Candidate("openvino", "fp16"),
        Candidate("onnxruntime", "int8"),
        Candidate("openvino", "int8"),
    ),
    "torchscript": (),
}


@dataclass(frozen=True)
class Measured:
    """What a candidate did, or why it did nothing.

    Attributes:
        seconds: of each run, by batch size.
        min_cosine: to PyTorch; NaN when it gave what is no number.
        reason: why it is not available; the rest is empty then.
    """

    candidate: Candidate
    seconds: Mapping[int, Sequence[float]] = field(default_factory=dict)
    min_cosine: float = math.nan
    memory_mb: float = 0.0
    device: str = ""
    reason: str = ""

    @property
    def passes(self) -> bool:
        """It ran, and is as close to PyTorch as its precision must be."""
        # Written so that NaN fails.
        return not self.reason and self.min_cosine >= GATES[self.candidate.precision]

    @property
    def medians(self) -> dict[int, float]:
        """Seconds of one run by batch size."""
        return {size: statistics.median(times) for size, times in self.seconds.items()}

    @property
    def spread(self) -> float:
        """How much its runs differ: half the distance of the quartiles, relative to the median;
        the middle of all batch sizes."""
        return statistics.median(_spread(times) for times in self.seconds.values())


def candidates(
    kinds: Sequence[str], engine: str | None = None, precision: str | None = None
) -> list[Candidate]:
    """What is worth measuring for a graph that exists in files of these kinds, the default first.

    Args:
        kinds: `onnx`, `torchscript`.
        engine, precision: what the user wants; what one of them names is taken from those on
            request as well when both or the precision are named.
    """
    usual = [c for kind in kinds for c in _BY_FILE[kind]]
    if "onnx" in kinds and engine != TRACED.engine:
        usual = [c for c in usual if c != TRACED]  # never the faster one, and torch in the stub
    known = usual + [c for kind in kinds for c in _ON_REQUEST[kind]] if precision else usual
    return [c for c in known if engine in (None, c.engine) and precision in (None, c.precision)]


def relative_time(measured: Measured, base: Measured) -> float:
    """One number of all batch sizes: the geometric mean of the ratios of the medians, so that each
    size counts alike; below 1 is faster than `base`."""
    mine, other = measured.medians, base.medians
    return math.exp(statistics.fmean(math.log(mine[size] / other[size]) for size in other))


def best(measured: Sequence[Measured]) -> Measured | None:
    """The fastest that passes its gate; the first of them (the default, when it is there) unless
    another is faster by more than the noise. None when none passes."""
    passing = [one for one in measured if one.passes]
    if not passing:
        return None
    base = passing[0]
    fastest = min(passing, key=lambda one: relative_time(one, base))
    noise = min(_MOST_NOISE, max(_LEAST_NOISE, base.spread, fastest.spread))
    return fastest if relative_time(fastest, base) < 1 - noise else base


def nothing_to_gain(measured: Measured) -> bool:
    """So fast already that no other needs to be measured."""
    # The quickest of the runs: a busy machine makes none of them quicker.
    times = measured.seconds.values()
    return measured.passes and max(min(runs) for runs in times) < NEGLIGIBLE_SECONDS


def table(measured: Sequence[Measured], chosen: Measured) -> list[dict[str, Any]]:
    """For the manifest: one entry per candidate, milliseconds by batch size."""
    return [_entry(one, chosen) for one in measured]


def _entry(one: Measured, chosen: Measured) -> dict[str, Any]:
    name = {"engine": one.candidate.engine, "precision": one.candidate.precision}
    if one.reason:
        return name | {"chosen": False, "reason": one.reason}
    entry = name | {
        "chosen": one is chosen,
        "milliseconds": {str(size): round(t * 1e3, 3) for size, t in one.medians.items()},
        "memory_mb": round(one.memory_mb),
        "min_cosine": None if math.isnan(one.min_cosine) else round(one.min_cosine, 7),
    }
    if not one.passes:
        entry["reason"] = refusal(one)
    return entry


def refusal(one: Measured) -> str:
    """Why a candidate that ran may not serve."""
    gate = GATES[one.candidate.precision]
    return (
        f"Its outputs are too far from PyTorch's: cosine {one.min_cosine:.4f}, "
        f"{one.candidate.precision} needs {gate}."
    )


def _spread(times: Sequence[float]) -> float:
    ordered = sorted(times)
    low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    return (high - low) / 2 / statistics.median(ordered)
