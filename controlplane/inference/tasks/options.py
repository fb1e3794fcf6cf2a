"""Options of tasks: how each is checked, and what its JSON schema says. Rules only."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Faults

_INT64 = 2**63 - 1
_MAX_STOPS = 16
_MAX_STOP = 1000


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A request parameter of the backend, `name` in both places; the base of its kinds.

    Attributes:
        aliases: other names by which callers may give it.
    """

    name: str
    about: str
    aliases: tuple[str, ...] = ()

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        """The parameter's value for Triton: str, bool, int or float; wrong ones go to `faults`."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON schema of what callers write."""
        raise NotImplementedError


class Flag(Option, frozen=True, kw_only=True):
    """True or false."""

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        if not isinstance(value, bool):
            faults[path] = ["must be true or false"]
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean", "description": self.about}


class Whole(Option, frozen=True, kw_only=True):
    """A whole number from `least` to `most`, a multiple of `multiple`."""

    least: int = 0
    most: int = _INT64
    multiple: int = 1

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        # 20.0 is a whole number too: JSON knows only one kind of number.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            faults[path] = ["must be a whole number"]
        elif not self.least <= value <= self.most:
            faults[path] = [f"must be {_range(self.least, self.most)}"]
        elif value % self.multiple:
            faults[path] = [f"must be a multiple of {self.multiple}"]
        return value

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer", "minimum": self.least}
        if self.most < _INT64:
            schema["maximum"] = self.most
        if self.multiple > 1:
            schema["multipleOf"] = self.multiple
        return {**schema, "description": self.about}


class Real(Option, frozen=True, kw_only=True):
    """A number from `least` to `most`, finite."""

    least: float = 0.0
    most: float = math.inf
    above: bool = False

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            faults[path] = ["must be a number"]
            return value
        number = _as_float(value)
        enough = number > self.least if self.above else number >= self.least
        if not (math.isfinite(number) and enough and number <= self.most):
            faults[path] = [f"must be {_range(self.least, self.most, above=self.above)}"]
        return number

    def schema(self) -> dict[str, Any]:
        least = "exclusiveMinimum" if self.above else "minimum"
        schema: dict[str, Any] = {"type": "number", least: self.least}
        if math.isfinite(self.most):
            schema["maximum"] = self.most
        return {**schema, "description": self.about}


class Word(Option, frozen=True, kw_only=True):
    """A text of at most `most` characters; it may be empty.

    Attributes:
        or_number: a whole number is taken too, and travels as text.
    """

    most: int = 1000
    or_number: bool = False

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        if self.or_number and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            faults[path] = ["must be a string"]
        elif len(value) > self.most:
            faults[path] = [f"must be at most {self.most} characters (it has {len(value)})"]
        elif not is_unicode(value):
            faults[path] = ["holds half of a surrogate pair, which is not valid Unicode"]
        return value

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "maxLength": self.most}
        if self.or_number:
            return {"oneOf": [text, {"type": "integer"}], "description": self.about}
        return {**text, "description": self.about}


class Stops(Option, frozen=True, kw_only=True):
    """A string, or a list of strings, which travels as JSON."""

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(stop, str) for stop in listed):
            faults[path] = ["must be a string or a list of strings"]
        elif len(listed) > _MAX_STOPS or not all(0 < len(stop) <= _MAX_STOP for stop in listed):
            faults[path] = [f"must be at most {_MAX_STOPS} strings of 1 to {_MAX_STOP} characters"]
        elif not all(is_unicode(stop) for stop in listed):
            faults[path] = ["holds half of a surrogate pair, which is not valid Unicode"]
        return json.dumps(listed)

    def schema(self) -> dict[str, Any]:
        stop = {"type": "string", "minLength": 1, "maxLength": _MAX_STOP}
        many = {"type": "array", "items": stop, "maxItems": _MAX_STOPS}
        return {"oneOf": [stop, many], "description": self.about}


class Words(Option, frozen=True, kw_only=True):
    """Up to `most` different texts: a list, or one with commas between them; sent as JSON."""

    most: int = 100
    longest: int = 1000

    def read(self, value: Any, path: str, faults: Faults) -> Any:
        # as Triton's clients write them, and transformers
        listed = [w.strip() for w in value.split(",")] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            faults[path] = ["must be a list of strings"]
        elif not all(is_unicode(word) for word in listed):
            faults[path] = ["holds half of a surrogate pair, which is not valid Unicode"]
        elif not 0 < len(listed) <= self.most or len(set(listed)) < len(listed):
            faults[path] = [f"must be from 1 to {self.most} strings, each once"]
        elif not all(word.strip() and len(word) <= self.longest for word in listed):
            faults[path] = [f"must be strings of 1 to {self.longest} characters, not blank"]
        return json.dumps(listed)

    def schema(self) -> dict[str, Any]:
        word = {"type": "string", "minLength": 1, "maxLength": self.longest}
        many = {"type": "array", "items": word, "minItems": 1, "maxItems": self.most}
        listed = {"type": "string", "minLength": 1}
        return {"oneOf": [listed, many], "description": self.about}


def is_unicode(text: str) -> bool:
    """False for text with half of a surrogate pair, which has no UTF-8 form."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _range(least: float, most: float, *, above: bool = False) -> str:
    begin = f"above {least:g}" if above else f"{least:g} or more"
    if most in (_INT64, math.inf):
        return begin
    return f"{begin} and at most {most:g}" if above else f"from {least:g} to {most:g}"
