"""A request's parameters, checked; a refusal gives the parameter's name and its limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from backends.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


def whole_number(
    parameters: Mapping[str, Any], name: str, default: int | None, *, low: int, high: int
) -> int | None:
    """A whole number in `low`..`high`; the default where the request names none.

    Raises:
        InputError: no whole number, or beyond the limits.
    """
    given = parameters.get(name)
    if given is None:
        return default
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        limits = f"from {low:,} to {high:,}"
        raise InputError(f"Parameter {name} must be a whole number {limits}, got {_shown(given)}.")
    return given


def real_number(
    parameters: Mapping[str, Any], name: str, default: float, *, low: float, high: float
) -> float:
    """A finite number in `low`..`high`; the default where the request names none.

    Raises:
        InputError: no number, NaN, or beyond the limits.
    """
    given = parameters.get(name)
    if given is None:
        return default
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or not math.isfinite(given) or not low <= given <= high:
        raise InputError(
            f"Parameter {name} must be a number from {low:g} to {high:g}, got {_shown(given)}."
        )
    return float(given)


def flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false.

    Raises:
        InputError: something else.
    """
    given = parameters.get(name)
    if given is None:
        return default
    if not isinstance(given, bool):
        raise InputError(f"Parameter {name} must be true or false, got {_shown(given)}.")
    return given


def short_text(
    parameters: Mapping[str, Any], name: str, default: str | None, *, longest: int
) -> str | None:
    """A text of at most `longest` characters.

    Raises:
        InputError: no text, or longer.
    """
    given = parameters.get(name)
    if given is None:
        return default
    if not isinstance(given, str):
        raise InputError(f"Parameter {name} must be a text, got {_shown(given)}.")
    if len(given) > longest:
        raise InputError(
            f"Parameter {name} has {len(given):,} characters; at most {longest:,} are allowed."
        )
    return given


def _shown(value: Any) -> str:
    # huge integers have no decimal form beyond some thousand digits
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number beyond all limits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
