"""What answers are made of: texts, base64, and schemas that several tasks share. Rules only."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Outputs

TEXT_SCHEMA = {"type": "string"}
NUMBER_SCHEMA = {"type": "number"}
WHOLE_SCHEMA = {"type": "integer"}
FILE_SCHEMA = {"type": "string", "contentEncoding": "base64"}


def objects(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """JSON schema of an object with these properties."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def arrays(items: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a list."""
    return {"type": "array", "items": items}


def first(outputs: Outputs, name: str) -> Any:
    """The one element of a tensor of shape [1]."""
    return outputs[name][0]


def text(value: bytes) -> str:
    """A BYTES element as text; what is not UTF-8 in it is replaced."""
    return value.decode(errors="replace")


def base64_text(value: bytes) -> str:
    """A BYTES element as base64."""
    return base64.b64encode(value).decode()
