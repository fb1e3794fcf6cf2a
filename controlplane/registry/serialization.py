"""Model, ModelVersion and ResourceRequirements as JSON, YAML and protobuf (domain §1.6, C-57).

All three are forms of one document (`documents.py`).

Reading is strict: an unknown field of JSON or YAML is refused, for these are written by hand and a
misspelt field must not be a silent default. Unknown fields of protobuf are ignored, as its own
rules of evolution have it. Numbers in free maps beyond 2**53 are refused everywhere, because
protobuf's Struct, like JavaScript, would change them (RFC 7493 §2.2); a whole number may come back
from `5.0` as `5`.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

import msgspec
import yaml

from controlplane.errors import ValidationFailed
from controlplane.registry.documents import (
    Document,
    E,
    Entity,
    exact_number,
    from_document,
    moment_text,
    to_document,
)
from controlplane.registry.model import Model, ModelVersion, ResourceRequirements

if TYPE_CHECKING:
    from collections.abc import Callable

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


_PLUGIN = "TASK_TYPE_PLUGIN"  # its name is in the field `plugin_task`


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
            _fill_enum(message, field, value)
        else:
            try:
                setattr(message, name, value)
            except (ValueError, OverflowError):
                where = f"{path}{name}"
                raise ValidationFailed.field(where, f"{value} does not fit its field") from None


def _fill_enum(message: Any, field: Any, word: str) -> None:
    values = field.enum_type.values_by_name
    known = values.get(_prefix(field.enum_type) + word.upper())
    if known is None:  # no other enum is open
        known, message.plugin_task = values[_PLUGIN], word
    setattr(message, field.name, known.number)


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
    plugin_task = found.pop("plugin_task", None)
    if plugin_task is not None and found.get("task_type") == "plugin":
        found["task_type"] = plugin_task
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
        return moment_text(value.ToDatetime(tzinfo=timezone.utc))
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
    return exact_number(content, "protobuf") if kind == "number_value" else content


def _prefix(enum: Any) -> str:
    """`TASK_TYPE_` for TaskType."""
    words = "".join(f"_{char}" if char.isupper() else char for char in enum.name)
    return f"{words.lstrip('_').upper()}_"


def _word(enum: Any, number: int) -> str | None:
    known = enum.values_by_number.get(number)
    if number == 0:
        return None
    return f"number {number}" if known is None else known.name.removeprefix(_prefix(enum)).lower()
