"""What a text generator is served in: fp32, or bf16 where it is faster and says the same."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from converters.agreement import agreement
from converters.errors import ConversionError, EngineUnavailable, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from converters.conversion import Conversion
    from converters.weights import Weights

    Scores = Iterable[torch.Tensor]  # [positions, vocabulary] of each verification text

ENGINE = "transformers"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How much faster bf16 must be to be worth the digits it loses.
_WORTH = 1.2
_TIMED_RUNS = 7
_TIMED_TOKENS = (1, 64)  # computed at once: a step, a prompt
# Sizes beyond which a layer is only timed in part: it tells as much, and takes no memory.
_LARGEST_TIMED = 4096
_NAMED_SIZES = ("intermediate_size", "ffn_dim", "d_ff", "decoder_ffn_dim", "n_inner")

Times = dict[str, dict[int, float]]  # seconds by precision and tokens computed at once


@dataclass(frozen=True)
class Settled:
    """The model in the precision that it is served in.

    Attributes:
        table: what was measured, for the manifest's `candidates`; empty when nothing was.
    """

    model: Any
    precision: str
    table: list[dict[str, Any]]


@dataclass(frozen=True)
class Candidates:
    """A model that can be loaded in either precision.

    Attributes:
        load: the model in a precision.
        scores: what a loaded model says to the verification texts.
    """

    config: Any
    weights: Weights
    load: Callable[[str], Any]
    scores: Callable[[Any], Scores]


def settle(conversion: Conversion, candidates: Candidates) -> Settled:
    """Load the model in the precision that was asked for, else in the better one here.

    bf16 serves only when its scores were compared with fp32's and are as close as its gate asks;
    that holds for those who ask for it, too.

    Raises:
        EngineUnavailable: an engine or precision was asked for that is not to be had here, or
            misses its gate.
    """
    asked = _asked(conversion)
    times: Times = {}
    if asked == "fp32":
        return Settled(candidates.load("fp32"), "fp32", [])
    if asked is None and not _is_worth(candidates.config, times):
        return Settled(candidates.load("fp32"), "fp32", _table("fp32", times, _SLOWER))
    conversion.events.progress("verify", 0.0, "comparing bf16 with fp32")
    gate = _compare(candidates)
    if gate.model is not None:
        return Settled(gate.model, "bf16", _table("bf16", times, gate.figures))
    if asked is not None:
        raise EngineUnavailable(
            f"{ENGINE} {asked}: {gate.figures['reason']} For this model there is {ENGINE} fp32."
        )
    gc.collect()
    return Settled(candidates.load("fp32"), "fp32", _table("fp32", times, gate.figures))


_SLOWER: Mapping[str, Any] = {"reason": f"It is not {_WORTH:g} times as fast here."}


def _asked(conversion: Conversion) -> str | None:
    if conversion.engine not in (None, ENGINE):
        raise EngineUnavailable(f"A model for {conversion.task} is served by {ENGINE} only.")
    asked = conversion.precision
    if asked is not None and asked not in DTYPES:
        raise EngineUnavailable(f"{ENGINE} computes in {' or '.join(DTYPES)}, not in {asked}.")
    return asked


@dataclass(frozen=True)
class _Gate:
    """How bf16 compared, with the model when it may serve."""

    model: Any
    figures: Mapping[str, Any]


def _compare(candidates: Candidates) -> _Gate:
    """One model after the other: both at once would take half as much memory again."""
    needed = candidates.weights.elements * DTYPES["fp32"].itemsize
    if (free := psutil.virtual_memory().available) < needed:
        why = (
            f"It was not compared with fp32, whose weights take {needed / 2**20:,.0f} MB: "
            f"{free / 2**20:,.0f} MB of memory are free."
        )
        # Weights that are bf16 already lose nothing: what is not compared is the computing alone,
        # and fp32 could not be served here anyway.
        stored = candidates.weights.dtype == "bfloat16"
        return _Gate(candidates.load("bf16") if stored else None, {"reason": why})
    try:
        expected = _said(candidates)
        gc.collect()
        model = candidates.load("bf16")
        with torch.inference_mode():
            found = agreement(expected, candidates.scores(model))
    except ConversionError:
        raise
    except Exception as error:  # noqa: BLE001 - models compute in what types they can
        return _Gate(None, {"reason": f"It cannot be compared with fp32: {one_line(error)}."})
    figures: dict[str, Any] = {
        "min_cosine": _rounded(found.min_cosine),
        "divergence": _rounded(found.divergence),
        "same_token": round(found.same_token, 4),
    }
    refusal = found.refusal("bf16")
    return _Gate(None, figures | {"reason": refusal}) if refusal else _Gate(model, figures)


def _said(candidates: Candidates) -> list[torch.Tensor]:
    """What fp32 says; its model is out of memory afterwards."""
    model = candidates.load("fp32")
    with torch.inference_mode():
        return list(candidates.scores(model))


def _rounded(figure: float) -> float | None:
    """JSON knows no NaN."""
    return None if figure != figure else round(figure, 7)


def _is_worth(config: Any, times: Times) -> bool:
    """Whether bf16 is so much faster that its accuracy is worth a look; notes the times.

    On a CPU a layer of the model's own sizes is timed: that is where a model's time goes. A GPU
    that has bf16 is always faster with it.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    times |= {name: _layer_times(config, dtype) for name, dtype in DTYPES.items()}
    slow, fast = (sum(times[name].values()) for name in DTYPES)
    return fast * _WORTH < slow


def _layer_times(config: Any, dtype: torch.dtype) -> dict[int, float]:
    text = config.get_text_config(decoder=True)
    hidden = _size(text, ("hidden_size", "d_model", "n_embd"), 512)
    inner = _size(text, _NAMED_SIZES, 4 * hidden)
    # A new one each time, as many as there may be layers: a single one would stay in the cache.
    with torch.inference_mode():
        layers = [nn.Linear(hidden, inner, bias=False, dtype=dtype) for _ in range(4)]
        return {
            count: _least_time(layers, torch.randn(count, hidden).to(dtype))
            for count in _TIMED_TOKENS
        }


def _least_time(layers: Iterable[nn.Module], rows: torch.Tensor) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        for layer in layers:
            layer(rows)
        times.append(time.perf_counter() - started)
    return min(times)


def _size(config: Any, names: Iterable[str], otherwise: int) -> int:
    found = (getattr(config, name, None) for name in names)
    size = next((value for value in found if isinstance(value, int) and value > 0), otherwise)
    return min(size, _LARGEST_TIMED)


def _table(chosen: str, times: Times, bf16: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per precision, for the manifest."""
    entries = []
    for name in DTYPES:
        entry: dict[str, Any] = {"engine": ENGINE, "precision": name, "chosen": name == chosen}
        if name in times:
            entry["milliseconds"] = {str(n): round(t * 1e3, 3) for n, t in times[name].items()}
        entries.append(entry | (dict(bf16) if name == "bf16" else {}))
    return entries
