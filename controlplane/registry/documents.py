"""A model, version or requirements as a map of JSON-ready values, and back: what all forms share.

Field names are in snake_case, absent values are left out, enums are lower-case words, times are
ISO 8601 in UTC with `Z`. A model's document is flat as in REST: `version`, `status` and
`resource_requirements` are those of the current version, `version_number` is the entity's lock.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from controlplane.errors import ModelMoraError, ValidationFailed
from controlplane.registry.model import (
    Model,
    ModelId,
    ModelVersion,
    ResourceRequirements,
    check_checksum,
    check_version_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Document = dict[str, Any]
Entity = Model | ModelVersion | ResourceRequirements
E = TypeVar("E", Model, ModelVersion, ResourceRequirements)

_EXACT = 2**53
_DEPTH = 32
# What a model's document says of its current version, besides its name.
_OF_CURRENT = ("status", "resource_requirements")


def to_document(entity: Entity) -> Document:
    """The entity as a map of JSON-ready values, nulls left out.

    Raises:
        ValidationFailed: a free map holds what has no form in JSON, YAML and protobuf alike.
    """
    values = {
        name: _plain(value, name)
        for name in entity.__struct_fields__
        if (value := getattr(entity, name)) is not None
    }
    if isinstance(entity, Model):
        lock, current = values.pop("version"), values.pop("current_version")
        of_current = {name: _plain(getattr(entity.current, name), name) for name in _OF_CURRENT}
        values |= {"version": current, "version_number": lock}
        values |= {name: value for name, value in of_current.items() if value is not None}
    return values


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, datetime):
        return moment_text(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, msgspec.Struct):
        return to_document(cast("Entity", value))
    if isinstance(value, tuple):
        return [_plain(item, f"{path}.{number}") for number, item in enumerate(value)]
    return _json_value(value, path, _DEPTH)


def moment_text(value: datetime) -> str:
    """ISO 8601 in UTC, as REST writes it."""
    return cast("str", msgspec.to_builtins(value.astimezone(timezone.utc)))


def _json_value(value: Any, path: str, depth: int) -> Any:
    """`value` if all three forms can hold it; whole floats as integers."""
    if depth == 0:
        raise ValidationFailed.field(path, f"is nested deeper than {_DEPTH} levels")
    if isinstance(value, dict):
        return {
            _text(key, path): _json_value(item, f"{path}.{key}", depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_json_value(item, f"{path}.{i}", depth - 1) for i, item in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return exact_number(value, path)
    if value is None or isinstance(value, bool):
        return value
    raise ValidationFailed.field(path, f"holds a {type(value).__name__}, which JSON has no form of")


def exact_number(value: Any, path: str) -> int | float:
    """A number that JSON, YAML and protobuf's doubles hold alike; whole floats as integers.

    Raises:
        ValidationFailed: it is not finite, or beyond 2**53.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValidationFailed.field(path, f"{value} is no number of JSON")
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    number = int(value)
    if abs(number) > _EXACT:
        raise ValidationFailed.field(path, "is beyond 2**53; write it as text")
    return number


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ValidationFailed.field(path, f"has a key that is no text: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationFailed.field(path, "is not valid Unicode") from None
    return value


def from_document(value: Any, kind: type[E]) -> E:
    """The entity of a document.

    Raises:
        ValidationFailed: unknown, missing or malformed fields, or a broken rule of the domain.
    """
    errors = _unknown(value, kind, "")
    if errors:
        raise ValidationFailed(errors)
    fields = _as_fields(value) if kind is Model else value
    try:
        entity = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(error) from error
    _raise_broken(entity)
    to_document(entity)  # free maps hold only what can be written again
    if isinstance(entity, Model):
        _check_of_current(entity, value)
    return entity


def _as_fields(document: Document) -> Document:
    """A model's document with the names that the struct has, its derived fields dropped."""
    fields = {name: item for name, item in document.items() if name not in _OF_CURRENT}
    renamed = {"version": "current_version", "version_number": "version"}
    return {renamed.get(name, name): item for name, item in fields.items()}


def _names(kind: type[Entity]) -> set[str]:
    names = set(kind.__struct_fields__)
    return (
        names - {"current_version"} | {"version_number", *_OF_CURRENT} if kind is Model else names
    )


def _unknown(value: Any, kind: type[Entity], path: str) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        return {path.rstrip(".") or "document": ["must be a map"]}
    known = _names(kind)
    errors = {f"{path}{name}": ["is not a known field"] for name in value if name not in known}
    needs = value.get("resource_requirements")
    if needs is not None and kind is not ResourceRequirements:
        errors |= _unknown(needs, ResourceRequirements, f"{path}resource_requirements.")
    if kind is Model:
        versions = value.get("versions")
        for number, item in enumerate(versions if isinstance(versions, list) else []):
            errors |= _unknown(item, ModelVersion, f"{path}versions.{number}.")
    return errors


def _wrong_type(error: msgspec.ValidationError) -> ValidationFailed:
    message, _, place = str(error).partition(" - at `$")
    path = place.rstrip("`").replace("[", ".").replace("]", "").replace("...", "").strip(".")
    back = {"current_version": "version"}.get(path, path)
    return ValidationFailed.field(back or "document", message)


# -- the domain's rules ------------------------------------------------------------------------


def _raise_broken(entity: Entity) -> None:
    if isinstance(entity, ResourceRequirements):
        errors = entity.errors("")
        errors = {name.lstrip("."): texts for name, texts in errors.items()}
    elif isinstance(entity, ModelVersion):
        errors = _version_errors(entity, "")
    else:
        errors = _model_errors(entity)
    if errors:
        raise ValidationFailed(errors)


def _version_errors(version: ModelVersion, path: str) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    errors |= _refused(f"{path}model_id", ModelId.parse, version.model_id)
    errors |= _refused(f"{path}version", check_version_name, version.version)
    if version.checksum is not None:
        errors |= _refused(f"{path}checksum", check_checksum, version.checksum)
    if version.resource_requirements is not None:
        errors |= version.resource_requirements.errors(f"{path}resource_requirements")
    for name in ("triton_version", "version_number"):
        if getattr(version, name) < 1:
            errors[f"{path}{name}"] = ["must be 1 or more"]
    return errors | _time_errors(version, path)


def _model_errors(model: Model) -> dict[str, list[str]]:
    errors = _refused("model_id", ModelId.parse, model.model_id) | _time_errors(model, "")
    if model.version < 1:
        errors["version_number"] = ["must be 1 or more"]
    names = [version.version for version in model.versions]
    if model.current_version not in names:
        errors["version"] = ["must be one of versions"]
    if len(set(names)) < len(names):
        errors["versions"] = ["must have different names"]
    for number, version in enumerate(model.versions):
        errors |= _version_errors(version, f"versions.{number}.")
        if version.model_id != model.model_id:
            errors[f"versions.{number}.model_id"] = ["must be the model's"]
    return errors


def _time_errors(entity: Model | ModelVersion, path: str) -> dict[str, list[str]]:
    naive = [name for name in ("created_at", "updated_at") if getattr(entity, name).tzinfo is None]
    return {f"{path}{name}": ["must have a time zone: end it in Z"] for name in naive}


def _refused(path: str, check: Callable[[str], Any], text: str) -> dict[str, list[str]]:
    try:
        check(text)
    except ModelMoraError as error:
        return {path: [error.message]}
    return {}


def _check_of_current(model: Model, document: Document) -> None:
    """What the document says of the current version a second time must be the same."""
    current = to_document(model)
    differing = [
        name for name in _OF_CURRENT if name in document and not _same(document, current, name)
    ]
    if differing:
        raise ValidationFailed({name: ["must be the current version's"] for name in differing})


def _same(document: Document, current: Document, name: str) -> bool:
    if name == "resource_requirements" and isinstance(document[name], dict):
        try:
            needs = msgspec.convert(document[name], ResourceRequirements)
        except msgspec.ValidationError:
            return False
        return to_document(needs) == current.get(name)
    return bool(document[name] == current.get(name))
