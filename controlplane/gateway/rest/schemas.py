"""What the JSON bodies of the REST API have in common (domain §8.3), and its errors.

Absent values are UNSET, never null: what has no value is left out (domain §1.6). Memory is MB.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

T = TypeVar("T")

_EXAMPLE_ID = "sentence-transformers/all-MiniLM-L6-v2"
Id = Annotated[str, Meta(description="Model id, ORG/NAME.", examples=[_EXAMPLE_ID])]
Version = Annotated[
    str,
    Meta(description="Tag, branch, commit or semantic version.", examples=["main"]),
]
EngineName = Annotated[
    str,
    Meta(
        description="What runs an exported model: onnxruntime, openvino, torchscript; auto, or "
        "left out: the fastest on this machine that computes the same.",
        examples=["openvino"],
    ),
]
PrecisionName = Annotated[
    str,
    Meta(description="fp32, bf16, fp16, int8 (only when asked for), or auto.", examples=["bf16"]),
]
KeepLoaded = Annotated[
    bool, Meta(description="It stays in memory: it is never evicted, and comes back by itself.")
]
IdleTtl = Annotated[
    float,
    Meta(
        description="Seconds without use after which it leaves memory; 0 is right after use, "
        "below 0 never. Left out: as the setting says.",
        examples=[600],
    ),
]
TrustRemoteCode = Annotated[
    bool,
    Meta(
        description="Run code of the repository while it is converted; the server has to allow "
        "it (allow_remote_code)."
    ),
]
Json = dict[str, Any]


def present(value: T | None) -> T | UnsetType:
    """`value`, or UNSET for None."""
    return UNSET if value is None else value


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies: a misspelt field is an error, not a silent default."""


def without_nulls(value: msgspec.Struct) -> Json:
    """A struct as a JSON object, without what has no value (domain §1.6)."""
    found = {}
    for name, field in ((name, getattr(value, name)) for name in value.__struct_fields__):
        if field is not None:
            nested = isinstance(field, msgspec.Struct)
            found[name] = without_nulls(field) if nested else msgspec.to_builtins(field)
    return found


class Pagination(msgspec.Struct, kw_only=True):
    page: int
    page_size: int
    total_items: int
    total_pages: int

    @classmethod
    def of(cls, page: object) -> Pagination:
        """Of whatever has these four."""
        return msgspec.convert(page, cls, from_attributes=True)


class ErrorBody(msgspec.Struct, kw_only=True):
    code: Annotated[str, Meta(description="Stable code.", examples=["MODEL_NOT_FOUND"])]
    message: str
    details: Annotated[
        Json | UnsetType, Meta(description="`fields` maps field paths to messages.")
    ] = UNSET
    trace_id: Annotated[
        str | UnsetType, Meta(description="Finds the request in the server's log.")
    ] = UNSET


class ErrorResponse(msgspec.Struct, kw_only=True):
    error: ErrorBody
