"""Generation parameters of one request, read and checked: the names of docs/generation.md."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_MAX_TOKENS = 100  # domain.md, 4.6
MAX_TOKENS = 1_000_000
MAX_SEED = 2**63 - 1  # what Triton's 64-bit parameters hold
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
_LARGEST_TEMPERATURE = 100.0
_LARGEST_PENALTY = 100.0
_LARGEST_TOP_K = 10_000_000


@dataclass(frozen=True)
class Generation:
    """How to generate.

    Attributes:
        max_tokens: most tokens to generate, at least 1.
        temperature: 0 takes the likeliest token each time (greedy).
        top_p, top_k, repetition_penalty: None leaves them to the model's generation_config.json.
        stop: texts that end the generation; they are no part of the answer.
        seed: of the request's own random numbers; None draws one.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random rather than taken by rank."""
        return self.temperature > 0


def read_generation(parameters: Mapping[str, Any]) -> Generation:
    """Check the generation parameters of a request; others are left to whom they belong.

    Without a temperature the generation is greedy: the same request then gets the same answer,
    whatever else the server does.

    Raises:
        InputError: naming the parameter, its value and what it may be.
    """
    return Generation(
        max_tokens=_max_tokens(parameters),
        temperature=_number(parameters, "temperature", 0.0, _LARGEST_TEMPERATURE) or 0.0,
        top_p=_top_p(parameters),
        top_k=_integer(parameters, "top_k", 0, _LARGEST_TOP_K),
        repetition_penalty=_penalty(parameters),
        stop=_stop(parameters.get("stop")),
        seed=_integer(parameters, "seed", 0, MAX_SEED),
    )


def read_flag(parameters: Mapping[str, Any], name: str) -> bool:
    """A parameter that is true or false; false when it is not given.

    Raises:
        InputError: it is neither.
    """
    given = parameters.get(name)
    if given is None:
        return False
    if not isinstance(given, bool):
        raise InputError(f"Parameter {name} must be true or false, got {_shown(given)}.")
    return given


def _max_tokens(parameters: Mapping[str, Any]) -> int:
    name = "max_tokens" if parameters.get("max_tokens") is not None else "max_length"
    given = _integer(parameters, name, 1, MAX_TOKENS)
    return DEFAULT_MAX_TOKENS if given is None else given


def _top_p(parameters: Mapping[str, Any]) -> float | None:
    given = _number(parameters, "top_p", 0.0, 1.0)
    if given == 0.0:
        raise InputError("Parameter top_p must be above 0; for the likeliest token give top_k 1.")
    return given


def _penalty(parameters: Mapping[str, Any]) -> float | None:
    given = _number(parameters, "repetition_penalty", 0.0, _LARGEST_PENALTY)
    if given == 0.0:
        raise InputError("Parameter repetition_penalty must be above 0; 1 penalises nothing.")
    return given


def _number(
    parameters: Mapping[str, Any], name: str, smallest: float, largest: float
) -> float | None:
    given = parameters.get(name)
    if given is None:
        return None
    fits = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
    if not fits or not smallest <= given <= largest:
        raise InputError(
            f"Parameter {name} must be a number from {smallest:g} to {largest:g}, "
            f"got {_shown(given)}."
        )
    return float(given)


def _integer(parameters: Mapping[str, Any], name: str, smallest: int, largest: int) -> int | None:
    given = parameters.get(name)
    if given is None:
        return None
    if isinstance(given, float) and given.is_integer():  # JSON makes no difference
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not smallest <= given <= largest:
        raise InputError(
            f"Parameter {name} must be a whole number from {smallest:,} to {largest:,}, "
            f"got {_shown(given)}."
        )
    return given


def _stop(given: Any) -> tuple[str, ...]:
    """One text, or a list of them as JSON: Triton's parameters hold no lists."""
    if given is None:
        return ()
    texts = _texts(given)
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise InputError(
            f"Parameter stop may hold {MAX_STOPS} texts of {MAX_STOP_CHARACTERS:,} characters each."
        )
    if any(text == "" for text in texts):
        raise InputError("Parameter stop must not hold an empty text.")
    return tuple(dict.fromkeys(texts))


def _texts(given: Any) -> list[str]:
    if isinstance(given, str) and not given.startswith("["):
        return [given]
    try:
        listed = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return [given]  # a text that happens to begin with a bracket
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise InputError("Parameter stop must be a text or a JSON list of texts.")
    return listed


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
