"""`modelmora.lock`: a lock as YAML, for people to read and to compare with `git diff`.

Written sorted and without anything that changes by itself: the same lock gives the same bytes. It
ends in YAML's `...`, so that a file that was cut off between two models is not taken for whole.
Read strictly, since people edit it: whatever is wrong is named with its line and what to do.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from controlplane.errors import InvalidLock
from controlplane.moments import to_text
from controlplane.registry.files import SourceFile
from controlplane.registry.lock import (
    LOCK_VERSION,
    Converter,
    LockDocument,
    LockedModelEntry,
    validate,
)
from controlplane.registry.model import ResourceRequirements

FILE_NAME = "modelmora.lock"
_HEADER = (
    "# Written by `modelmora lock`: which versions, bytes and converters a machine is to serve.\n"
    "# Another machine becomes equal to it with `modelmora sync`. Do not edit by hand.\n"
)
_MAX_BYTES = 64 * 2**20
_MAX_DEPTH = 20
# libyaml, where PyYAML was built with it, is ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TEXTS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"}
_PLACE = re.compile(r" - at `\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_EXPECTED = re.compile(r"Expected `(.*?)`, got `(.*?)`")


# -- writing -----------------------------------------------------------------------------------


class _Row(dict[str, Any]):
    """A map that is written on one line: one changed file is one changed line."""


class _FileDumper(_Dumper):  # type: ignore[misc]
    """PyYAML's safe dumper with `_Row`."""


_FileDumper.add_representer(
    _Row, lambda dumper, row: dumper.represent_mapping("tag:yaml.org,2002:map", row, True)
)


def dump(document: LockDocument) -> str:
    """The lock as the text of its file; the same lock always gives the same text."""
    values = _plain(document) | {"generated_at": to_text(document.generated_at)}
    entries = sorted(document.locked_models, key=lambda entry: entry.model_id)
    values["locked_models"] = [_entry(entry) for entry in entries]
    text: str = yaml.dump(
        values,
        Dumper=_FileDumper,
        sort_keys=False,
        allow_unicode=True,
        width=2**30,
        explicit_end=True,
    )
    return _HEADER + text


def _entry(entry: LockedModelEntry) -> dict[str, Any]:
    first = ("model_id", "version", "revision", "checksum", "artifact_uri", "source_url")
    values = _plain(entry)
    if not entry.trust_remote_code:  # unusual enough to be said only where it is so
        values.pop("trust_remote_code")
    # The long list of files comes last: what people look for is above it.
    ordered = {name: values.pop(name) for name in first if name in values}
    files = sorted(entry.files, key=lambda file: file.path)
    values.pop("files", None)
    return ordered | values | {"files": [_Row(_plain(file)) for file in files]}


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    """A struct's fields as plain values, without those that are None."""
    found = {
        name: _plain(field) if isinstance(field, msgspec.Struct) else field
        for name in value.__struct_fields__
        if (field := getattr(value, name)) is not None
    }
    return {name: field for name, field in found.items() if not isinstance(field, tuple)}


# -- reading -----------------------------------------------------------------------------------


def parse(content: str | bytes, name: str = FILE_NAME) -> LockDocument:
    """Read a lock's file.

    Args:
        name: of the file, for messages.

    Raises:
        InvalidLock: with every wrong place, its line, and what to do about it.
    """
    reading = _Reading(name)
    values = reading.values(content)
    reading.check_version(values)
    document = reading.convert(values)
    result = validate(document)
    reading.refuse(result.errors)
    entries = tuple(sorted(document.locked_models, key=lambda entry: entry.model_id))
    return msgspec.structs.replace(document, locked_models=entries)


class _Reading:
    """One file being read; knows on which line each value stands."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[str, int] = {}
        self._whole = False

    def values(self, content: str | bytes) -> dict[str, Any]:
        """The file's content as plain values, every scalar of the type it is written as."""
        if len(content) > _MAX_BYTES:
            raise self._error("", f"is larger than {_MAX_BYTES // 2**20} MB")
        try:
            text = content.decode() if isinstance(content, bytes) else content
            self._look_through(text)
            root = yaml.compose(text, Loader=_Loader)
            value = None if root is None else self._value(root, "")
        except UnicodeDecodeError as error:
            raise self._error("", f"is not UTF-8 text: {error.reason}") from error
        except RecursionError as error:
            raise self._error("", "is nested too deeply") from error
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from error
        if not isinstance(value, dict):
            raise self._error(
                "",
                "is not a lock: it should begin with lock_version. Write it with: modelmora lock",
            )
        return value

    def _look_through(self, text: str) -> None:
        """See whether it is written to its end, and refuse what is dangerous to build.

        A few aliases within aliases would make a file of a kilobyte into gigabytes.
        """
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:  # libyaml's time grows with its square
                raise self._error("", f"line {_line(event)}: is nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                line = _line(event)
                raise self._error("", f"line {line}: aliases (*{event.anchor}) are not taken")
            if isinstance(event, yaml.DocumentEndEvent):
                self._whole = bool(event.explicit)

    def _value(self, node: yaml.Node, path: str) -> Any:
        self._lines[path] = _line(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._map(node, path)
        assert isinstance(node, yaml.ScalarNode)  # there are no others
        return node.value if node.tag in _TEXTS else _scalar(node)

    def _map(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            below = f"{path}.{key}" if path else key
            if key in found:
                self._lines[below] = _line(key_node)
                raise self._error(below, "is there twice: keep one")
            found[key] = self._value(value_node, below)
            self._lines[below] = _line(key_node)
        return found

    def check_version(self, values: dict[str, Any]) -> None:
        """Refuse what only a newer ModelMora can read, before anything else is looked at.

        Then what was cut off.
        """
        found = values.get("lock_version")
        if found is None:
            raise self._error(
                "lock_version", f"is missing: a lock begins with it, '{LOCK_VERSION}'"
            )
        number = _number(str(found))
        if number is not None and number > (_number(LOCK_VERSION) or ()):
            raise self._error(
                "lock_version",
                f"is {found}: the file was written by a newer ModelMora, this one reads "
                f"{LOCK_VERSION}. Update ModelMora",
            )
        if str(found) != LOCK_VERSION:
            raise self._error("lock_version", f"is {found!r}, not '{LOCK_VERSION}'")
        values["lock_version"] = str(found)
        if not self._whole:
            raise self._error(
                "",
                "is cut off: its last line is not '...'. Take the file from where it was written, "
                "or write it anew with: modelmora lock",
            )

    def convert(self, values: dict[str, Any]) -> LockDocument:
        """The document, or every value that is of the wrong kind, one for each entry at least."""
        entries = values.get("locked_models", [])
        errors = self._struct_errors(values | {"locked_models": []}, LockDocument, "")
        if not isinstance(entries, list):
            errors["locked_models"] = ["must be a list of models"]
            entries = []
        for index, entry in enumerate(entries):
            errors |= self._entry_errors(entry, f"locked_models[{index}]")
        self.refuse(errors)
        return msgspec.convert(values, LockDocument)

    def _entry_errors(self, entry: Any, path: str) -> dict[str, list[str]]:
        if not isinstance(entry, dict):
            return {path: ["must be a model with model_id, version, checksum …"]}
        errors = _unknown_keys(
            entry.get("resource_requirements"),
            ResourceRequirements,
            f"{path}.resource_requirements",
        )
        errors |= _unknown_keys(entry.get("converter"), Converter, f"{path}.converter")
        files = entry.get("files")
        for index, file in enumerate(files if isinstance(files, list) else []):
            errors |= _unknown_keys(file, SourceFile, f"{path}.files[{index}]")
        return errors or self._struct_errors(entry, LockedModelEntry, path)

    def _struct_errors(self, value: Any, kind: Any, path: str) -> dict[str, list[str]]:
        errors = _unknown_keys(value, kind, path)
        if errors:
            return errors
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            return _readable(str(error), path)
        return {}

    def refuse(self, errors: dict[str, list[str]]) -> None:
        """Raises InvalidLock when there are any."""
        if errors:
            placed = {self._placed(path): texts for path, texts in errors.items()}
            lines = [f"{place} {'; '.join(texts)}" for place, texts in placed.items()]
            raise InvalidLock(errors, f"{self._name}: " + ". ".join(lines) + ".")

    def _error(self, path: str, text: str) -> InvalidLock:
        place = self._placed(path)
        message = f"{self._name}{':' if place else ''} {place} {text}.".replace("  ", " ")
        return InvalidLock({path or "file": [text]}, message)

    def _placed(self, path: str) -> str:
        """`line 12: locked_models[0].checksum`; a value that is missing has its parent's line."""
        at = path
        while at and at not in self._lines:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        line = self._lines.get(at)
        return f"line {line}: {path}" if line and path else path

    def _not_yaml(self, error: yaml.YAMLError) -> InvalidLock:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        text = f"{where}it is not YAML: {problem}. Take the file from where it was written"
        return InvalidLock({"file": [text]}, f"{self._name}: {text}.")


def _line(place: yaml.Node | yaml.Event) -> int:
    """Where it begins; counted from 1."""
    return 0 if place.start_mark is None else place.start_mark.line + 1


def _scalar(node: yaml.ScalarNode) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except ValueError:  # such as 0b: let it be the text it is
        return node.value
    finally:
        loader.dispose()


def _number(text: str) -> tuple[int, ...] | None:
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None


def _unknown_keys(value: Any, kind: Any, path: str) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        return {}
    known = kind.__struct_fields__
    return {
        f"{path}.{key}" if path else key: [f"is not a known key; known: {', '.join(known)}"]
        for key in value
        if key not in known
    }


def _readable(text: str, path: str) -> dict[str, list[str]]:
    """msgspec's message as a path and words that say what to do."""
    place = _PLACE.search(text)
    message = text[: place.start()] if place else text
    parts = [path, place.group(1) if place else ""]
    if match := _MISSING.fullmatch(message):
        parts, message = [*parts, match.group(1)], "is missing"
    elif (match := _EXPECTED.match(message)) and match.group(1).startswith("str"):
        message = f"must be a text, not {match.group(2)}: write it in quotes"
    elif match:
        message = f"must be {match.group(1)}, not {match.group(2)}"
    where = "".join(f".{part}" if part and part[0] != "[" else part for part in parts)
    return {where.lstrip(".") or "file": [message]}
