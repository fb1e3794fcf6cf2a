"""Model, ModelVersion and ResourceRequirements as JSON, YAML and protobuf (domain §1.6, C-57).

All three are forms of one *document*: a map of JSON-ready values, field names in snake_case,
values that are absent left out, enums as lower-case words, times as ISO 8601 in UTC with `Z`.
A model's document is flat as in REST: `version`, `status` and `resource_requirements` are those of
the current version, `version_number` is the entity's lock.

Reading is strict: an unknown field of JSON or YAML is refused, for these are written by hand and a
misspelt field must not be a silent default. Unknown fields of protobuf are ignored, as its own
rules of evolution have it. Numbers in free maps beyond 2**53 are refused everywhere, because
protobuf's Struct, like JavaScript, would change them (RFC 7493 §2.2); a whole number may come back
from `5.0` as `5`.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import yaml

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


# -- JSON --------------------------------------------------------------------------------------


def to_json(entity: Entity) -> str:
    """The entity as one line of JSON.

    Raises:
        ValidationFailed: it holds what has no form in all three.
    """
    return msgspec.json.encode(to_document(entity)).decode()


def from_json(text: str | bytes, kind: type[E]) -> E:
    """The entity of its JSON.

    Raises:
        ValidationFailed: naming the fields that are wrong.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValidationFailed.field("json", f"cannot be read: {error}") from error
    return from_document(value, kind)


# -- YAML --------------------------------------------------------------------------------------


def to_yaml(entity: Entity) -> str:
    """The entity as YAML, two spaces per level.

    Raises:
        ValidationFailed: as `to_json`.
    """
    document = to_document(entity)
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def from_yaml(text: str | bytes, kind: type[E]) -> E:
    """The entity of its YAML; comments are allowed, aliases and repeated keys are not.

    Raises:
        ValidationFailed: as `from_json`.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
        raise ValidationFailed.field("yaml", f"cannot be read: {error}") from error
    return from_document(value, kind)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that keeps every line break as it is."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes U+0085, U+2028 and U+2029 as they are in single quotes, where they are
        # line breaks and are folded into spaces when they are read.
        style = '"' if any(char in data for char in "\r\n\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a time is text, as it is in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012 the library's own declaration
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        # A few nested aliases stand for gigabytes.
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.YAMLError(f"{', '.join(sorted(repeated))} is written twice{node.start_mark}")
        return super().construct_mapping(node, deep)


# -- protobuf ----------------------------------------------------------------------------------


def to_protobuf(entity: Entity) -> bytes:
    """The entity as a serialized `modelmora.v1` message of its name.

    Raises:
        ValidationFailed: as `to_json`; also a whole number beyond the field's 32 or 64 bits.
    """
    message = _message(type(entity))
    _fill(message, to_document(entity), "")
    return cast("bytes", message.SerializeToString(deterministic=True))


def from_protobuf(data: bytes, kind: type[E]) -> E:
    """The entity of its protobuf message.

    Raises:
        ValidationFailed: as `from_json`.
    """
    from google.protobuf.message import DecodeError

    message = _message(kind)
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValidationFailed.field("protobuf", f"cannot be read: {error}") from error
    return from_document(_read(message), kind)


def _message(kind: type[Entity]) -> Any:
    # Imported when first asked for: the server starts without protobuf's registry.
    from protos.modelmora.v1 import common_pb2, registry_pb2

    kinds: dict[type[Entity], Callable[[], Any]] = {
        Model: registry_pb2.Model,
        ModelVersion: registry_pb2.ModelVersion,
        ResourceRequirements: common_pb2.ResourceRequirements,
    }
    return kinds[kind]()


def _fill(message: Any, document: Document, path: str) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in document.items():
        field = fields[name]
        if field.message_type is not None:
            _fill_message(message, field, value, f"{path}{name}")
        elif field.enum_type is not None:
            number = field.enum_type.values_by_name[_prefix(field.enum_type) + value.upper()].number
            setattr(message, name, number)
        else:
            try:
                setattr(message, name, value)
            except (ValueError, OverflowError):
                where = f"{path}{name}"
                raise ValidationFailed.field(where, f"{value} does not fit its field") from None


def _fill_message(message: Any, field: Any, value: Any, path: str) -> None:
    target = getattr(message, field.name)
    kind = field.message_type.full_name
    if kind == "google.protobuf.Timestamp":
        target.FromDatetime(datetime.fromisoformat(value.replace("Z", "+00:00")))
    elif kind == "google.protobuf.Struct":
        target.SetInParent()  # an empty map is there all the same
        target.update(value)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _fill(target.add(), item, f"{path}.{number}.")
    else:
        target.SetInParent()
        _fill(target, value, f"{path}.")


def _read(message: Any) -> Document:
    fields = message.DESCRIPTOR.fields
    found = {field.name: _value(field, getattr(message, field.name), message) for field in fields}
    return {name: value for name, value in found.items() if value is not None}


def _value(field: Any, value: Any, message: Any) -> Any:
    """A field's value as a document has it; None where it is absent."""
    if field.message_type is None:
        if field.enum_type is not None:
            return _word(field.enum_type, value)
        return None if field.has_presence and not message.HasField(field.name) else value
    if not field.has_presence:
        return [_read(item) for item in value]
    if not message.HasField(field.name):
        return None
    kind = field.message_type.full_name
    if kind == "google.protobuf.Timestamp":
        return _moment(value.ToDatetime(tzinfo=timezone.utc))
    return _free(value) if kind == "google.protobuf.Struct" else _read(value)


def _free(struct: Any) -> Document:
    """A Struct's content. Its numbers are all doubles: the whole ones become whole again here."""
    return {name: _free_value(value) for name, value in struct.fields.items()}


def _free_value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    content = getattr(value, kind)
    if kind == "struct_value":
        return _free(content)
    if kind == "list_value":
        return [_free_value(item) for item in content.values]
    return _number(content, "protobuf") if kind == "number_value" else content


def _prefix(enum: Any) -> str:
    """`TASK_TYPE_` for TaskType."""
    words = "".join(f"_{char}" if char.isupper() else char for char in enum.name)
    return f"{words.lstrip('_').upper()}_"


def _word(enum: Any, number: int) -> str | None:
    known = enum.values_by_number.get(number)
    if number == 0:
        return None
    return f"number {number}" if known is None else known.name.removeprefix(_prefix(enum)).lower()


# -- documents ---------------------------------------------------------------------------------


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
        return _moment(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, msgspec.Struct):
        return to_document(cast("Entity", value))
    if isinstance(value, tuple):
        return [_plain(item, f"{path}.{number}") for number, item in enumerate(value)]
    return _json_value(value, path, _DEPTH)


def _moment(value: datetime) -> str:
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
        return _number(value, path)
    if value is None or isinstance(value, bool):
        return value
    raise ValidationFailed.field(path, f"holds a {type(value).__name__}, which JSON has no form of")


def _number(value: Any, path: str) -> int | float:
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
        needs = msgspec.convert(document[name], ResourceRequirements)
        return to_document(needs) == current.get(name)
    return bool(document[name] == current.get(name))
