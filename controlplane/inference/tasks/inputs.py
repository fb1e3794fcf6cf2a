"""Inputs of tasks: how what callers write becomes tensors. Rules only."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from controlplane.inference.tasks.media import MediaRules, read_media
from controlplane.inference.tasks.options import is_unicode
from controlplane.inference.tasks.plan import Faults, Reference
from controlplane.registry.model import TEXT

Contents = dict[str, bytes | Reference]
_FILE_FORMS = "base64, a data URI, or an address where the server allows that"


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A field of `input_data`, one value or a list of values: the base of its kinds.

    (No abstract class: msgspec's structs have a metaclass of their own.)

    Attributes:
        tensor: the model's input that takes it.
        aliases: other names by which callers may give it.
    """

    name: str
    tensor: str
    about: str
    aliases: tuple[str, ...] = ()
    takes_long: ClassVar[bool] = False
    """Whether `read` takes a `LongText`; others are given strings."""

    def is_batch(self, value: Any) -> bool:
        """Whether the value stands for several items."""
        return isinstance(value, list)

    def read(self, value: Any, path: str, rules: MediaRules, faults: Faults) -> Contents:
        """One item's tensors, a BYTES element each; what is wrong goes to `faults`."""
        raise NotImplementedError

    def one(self) -> dict[str, Any]:
        """JSON schema of one value."""
        raise NotImplementedError

    def schema(self, most: int) -> dict[str, Any]:
        """JSON schema of one value or up to `most` of them."""
        one = self.one()
        many = {"type": "array", "items": one, "maxItems": most}
        return {"oneOf": [one, many], "description": self.about}


class Text(Input, frozen=True, kw_only=True):
    """A text of 1 to 100,000 characters that is not blank."""

    def read(self, value: Any, path: str, _: MediaRules, faults: Faults) -> Contents:
        fault = _text_fault(value)
        if fault is not None:
            faults[path] = [fault]
            return {self.tensor: b""}
        return {self.tensor: value.encode()}

    def one(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": TEXT}


class Media(Input, frozen=True, kw_only=True):
    """An encoded file, `kind` an image or a recording."""

    kind: str = "image"
    takes_long: ClassVar[bool] = True

    def read(self, value: Any, path: str, rules: MediaRules, faults: Faults) -> Contents:
        return {self.tensor: read_media(value, path, self.kind, rules, faults)}

    def one(self) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64", "description": _FILE_FORMS}


def _text_fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not value.strip():
        return "must not be empty or blank"
    if len(value) > TEXT:
        return f"must be at most {TEXT} characters (it has {len(value)})"
    if not is_unicode(value):
        return "holds half of a surrogate pair, which is not valid Unicode"
    return None
