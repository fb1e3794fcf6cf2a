"""The models that a `modelmora.yaml` lists: read, checked, in the words of the REST API.

models:
  - model_id: org/name        # or name:
    version: main
    task: txt2embed           # or task_type:
    source: ./directory       # or source_url:
    display_name: …
    description: …
    config: {…}
    resources: {memory_mb: 512}   # or resource_requirements:
    preload: true             # or default:
    pinned: false
    trust_remote_code: false
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.config_file import MODELS_KEY, read_models_section
from controlplane.errors import ModelMoraError, SettingsError, ValidationFailed
from controlplane.registry.model import (
    ModelId,
    NewModel,
    ResourceRequirements,
    TaskType,
    check_new_model,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_ENTRIES = 1000
# Short words of the file, and those of older documents, for fields of the API.
_ALIASES = {
    "name": "model_id",
    "task": "task_type",
    "source": "source_url",
    "resources": "resource_requirements",
    "default": "preload",
}
_PLACE = re.compile(r" - at `\$\.?(.*?)`$")
_FIXED = re.compile(r"[0-9a-f]{40}|v?\d+\.\d+\.\d+([-+].*)?")


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that is wanted.

    Attributes:
        version: None takes the current version, `main` for a new model.
        task_type: None has it read from the model's files.
        preload: load it when the server starts; None leaves that as it is.
        trust_remote_code: run code of its repository to convert it, where the server allows that.
        pinned: the version must be a commit or a semantic version, which do not move.
        keep_loaded, idle_ttl: as `Model`; None leaves them as they are.
    """

    model_id: str
    version: str | None = None
    task_type: str | None = None
    source_url: str | None = None
    display_name: str | None = None
    description: str | None = None
    config: dict[str, Any] | None = None
    resource_requirements: ResourceRequirements | None = None
    preload: bool | None = None
    pinned: bool = False
    keep_loaded: bool | None = None
    idle_ttl: float | None = None
    trust_remote_code: bool = False


def read_catalog(path: Path, environ: Mapping[str, str]) -> tuple[CatalogEntry, ...]:
    """The entries of a file's `models:`; none when it has no such key.

    Relative directories count from the file's own.

    Raises:
        SettingsError: naming the place, such as `models[2].version`.
    """
    listed = read_models_section(path, environ)
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise SettingsError(f"{path}: {MODELS_KEY}", "must be a list of models")
    home = path.absolute().parent
    entries = [_entry(f"{path}: {MODELS_KEY}[{i}]", item, home) for i, item in enumerate(listed)]
    try:
        check_entries(entries)
    except ValidationFailed as error:
        place, messages = next(iter(error.details["fields"].items()))
        raise SettingsError(f"{path}: {place}", ", ".join(messages)) from error
    return tuple(entries)


def _entry(place: str, item: Any, home: Path) -> CatalogEntry:
    if isinstance(item, str):  # `- org/name` is short for `- model_id: org/name`
        item = {"model_id": item}
    if not isinstance(item, dict):
        raise SettingsError(place, "must be a model id, or keys and values")
    values: dict[str, Any] = {}
    for written, value in item.items():
        name = _ALIASES.get(str(written), str(written))
        if name in values:
            raise SettingsError(f"{place}.{written}", f"is given twice, as {name} too")
        values[name] = value
    if isinstance(values.get("source_url"), str):
        values["source_url"] = _source(values["source_url"], home)
    try:
        return msgspec.convert(values, CatalogEntry)
    except msgspec.ValidationError as error:
        raise _wrong(place, str(error)) from error


def _source(text: str, home: Path) -> str:
    """A URL as it is; a directory as an absolute file:// URL."""
    if "://" in text:
        return text
    return (home / Path(text).expanduser()).resolve().as_uri()


def _wrong(place: str, text: str) -> SettingsError:
    found = _PLACE.search(text)
    message = text[: found.start()] if found else text
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message):
        return SettingsError(f"{place}.{unknown[1]}", "is not a key of a model")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        return SettingsError(f"{place}.{missing[1]}", "is required")
    where = f"{place}.{found[1]}" if found and found[1] else place
    if message.startswith("Expected `str"):
        message = "must be text; put it in quotes"
    return SettingsError(where, message)


def check_entries(entries: Sequence[CatalogEntry]) -> None:
    """Check every rule of every entry at once.

    Raises:
        ValidationFailed: naming fields as `models[2].version`.
    """
    if len(entries) > MOST_ENTRIES:
        raise ValidationFailed.field(MODELS_KEY, f"at most {MOST_ENTRIES} are taken at once")
    errors: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        place = f"{MODELS_KEY}[{number}]"
        errors |= {f"{place}.{name}": texts for name, texts in _errors(entry).items()}
        first = seen.setdefault(entry.model_id, number)
        if first != number:
            errors[f"{place}.model_id"] = [f"is listed already, as {MODELS_KEY}[{first}]"]
    if errors:
        raise ValidationFailed(errors)


def _errors(entry: CatalogEntry) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    try:
        ModelId.parse(entry.model_id)
        check_new_model(as_new_model(entry, task_type=entry.task_type or TaskType.TXT2EMBED.value))
    except ModelMoraError as error:
        errors |= error.details.get("fields") or {"model_id": [error.message]}
    if entry.pinned and not _FIXED.fullmatch(entry.version or ""):
        errors.setdefault("version", []).append(
            "must be a commit (40 hexadecimal digits) or a semantic version when pinned is true"
        )
    return errors


def as_new_model(entry: CatalogEntry, *, task_type: str | None) -> NewModel:
    """The registration that an entry asks for."""
    return NewModel(
        model_id=entry.model_id,
        task_type=task_type,
        version="main" if entry.version is None else entry.version,
        display_name=entry.display_name,
        description=entry.description,
        source_url=entry.source_url,
        resource_requirements=entry.resource_requirements,
        config=wanted_config(entry, {}),
        keep_loaded=bool(entry.keep_loaded),
        idle_ttl=entry.idle_ttl,
        trust_remote_code=entry.trust_remote_code,
    )


def wanted_config(entry: CatalogEntry, known: Mapping[str, Any]) -> dict[str, Any]:
    """A model's `config` as the entry wants it; `known` is what it is, for what it leaves open."""
    config = dict(known if entry.config is None else entry.config)
    if entry.preload is not None:
        config["preload"] = entry.preload
    elif "preload" in known:
        config.setdefault("preload", known["preload"])
    return config
