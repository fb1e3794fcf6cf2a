"""Request bodies: decoded strictly, every wrong field named."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from litestar import Request

from controlplane.errors import ValidationFailed
from controlplane.gateway.errors import UnsupportedMedia
from controlplane.gateway.rest.infer_schemas import InferenceRequest
from controlplane.gateway.rest.long_texts import LONG, put_back, without_long_texts

_WHERE = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")


class JsonRequest(Request[Any, Any, Any]):
    """Decodes a body straight into the struct that the route declares.

    Litestar's own way converts leniently: it would take "12" for 12.
    """

    async def json(self) -> Any:
        """The body as the route's `data` type.

        Raises:
            UnsupportedMedia: it is said to be something else than JSON.
            ValidationFailed: it is not JSON, or not the JSON that the route takes.
        """
        chunks = [chunk async for chunk in self.stream()]
        media_type = self.headers.get("content-type", "application/json").partition(";")[0].strip()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMedia(f"Send JSON as application/json, not as {media_type[:100]}.")
        field = self.route_handler.parsed_data_field
        wanted = Any if field is None else field.annotation
        if sum(map(len, chunks)) < LONG:
            return decode(b"".join(chunks), wanted)
        body, texts = await asyncio.to_thread(without_long_texts, chunks)
        found = decode(body, wanted)
        if texts and isinstance(found, InferenceRequest):
            data, used = found.input_data, set[str]()
            found = msgspec.structs.replace(found, input_data=put_back(data, texts, used))
            if len(used) == len(texts):
                return found
        return decode(b"".join(chunks), wanted) if texts else found


def decode(body: bytes, wanted: Any) -> Any:
    """`body` as a value of type `wanted`.

    Raises:
        ValidationFailed: with all wrong fields of a struct, as dotted paths.
    """
    try:
        return msgspec.json.decode(body, type=wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        first = error
    # msgspec speaks up at the first wrong type; what follows may not even be JSON.
    value = _parse(body)
    fields = field_error(first) if isinstance(first, msgspec.ValidationError) else {}
    raise ValidationFailed(_all_wrong_fields(value, wanted) or fields or {"body": [str(first)]})


def _parse(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise ValidationFailed({"body": ["is nested too deeply"]}) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"The body is not valid JSON: {error}."
        raise ValidationFailed({"body": [str(error)]}, message) from None


def field_error(error: msgspec.ValidationError, below: str = "") -> dict[str, list[str]]:
    """One of msgspec's errors as a map of dotted field path to messages."""
    text = str(error)
    place = _WHERE.search(text)
    path = [below, place.group(1) if place else ""]
    message = text[: place.start()] if place else text
    if match := _UNKNOWN.fullmatch(message):
        path, message = [*path, match.group(1)], "is not a known field"
    elif match := _MISSING.fullmatch(message):
        path, message = [*path, match.group(1)], "is required"
    dotted = ".".join(part for part in path if part).replace(".[", "[")
    return {dotted or "body": [message]}


def _all_wrong_fields(value: Any, wanted: Any) -> dict[str, list[str]]:
    """Every wrong field at the top level of a struct, where msgspec stops at the first."""
    struct = _struct_in(wanted)
    if struct is None or not isinstance(value, dict):
        return {}
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    errors = {name: ["is not a known field"] for name in value if name not in known}
    for name, field in known.items():
        if name not in value:
            if field.required:
                errors[name] = ["is required"]
            continue
        try:
            msgspec.convert(value[name], field.type)
        except msgspec.ValidationError as error:
            errors |= field_error(error, below=name)
    return errors


def _struct_in(wanted: Any) -> type[msgspec.Struct] | None:
    """The struct among a type and the members of a union."""
    candidates = (wanted, *getattr(wanted, "__args__", ()))
    return next(
        (c for c in candidates if isinstance(c, type) and issubclass(c, msgspec.Struct)), None
    )
