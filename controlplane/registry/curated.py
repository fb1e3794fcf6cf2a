"""The curated list: facts about well-known models, shipped with ModelMora and added to by its user.

    models:
      org/name: {task_type: txt2embed, vector_size: 384}

The user's is `data_dir/model_configs.yaml`; its values win over the shipped ones, one by one.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from controlplane.config_file import read_yaml
from controlplane.errors import InvalidModelId, InvalidTaskType, SettingsError
from controlplane.registry.model import ModelId, TaskType

FILE_NAME = "model_configs.yaml"
_SHIPPED = Path(__file__).with_name(FILE_NAME)


class CuratedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said of a model."""

    task_type: str | None = None
    vector_size: int | None = None
    max_length: int | None = None
    parameters: int | None = None
    dtype: str | None = None
    memory_mb: int | None = None
    framework: str | None = None
    library: str | None = None
    license: str | None = None
    language: list[str] | None = None


def curated_facts(model_id: ModelId, data_dir: Path) -> dict[str, Any]:
    """What the lists say of a model; empty when they do not know it.

    Raises:
        SettingsError: the user's list is wrong, naming the entry.
    """
    return {**_facts(_shipped(), model_id), **_facts(user_list(data_dir), model_id)}


def user_list(data_dir: Path) -> dict[str, CuratedModel]:
    """The user's own entries, by model id; empty without a file.

    Raises:
        SettingsError: as `curated_facts`.
    """
    path = data_dir / FILE_NAME
    return read_list(path) if path.exists() else {}


@lru_cache(maxsize=1)
def _shipped() -> dict[str, CuratedModel]:
    return read_list(_SHIPPED)


def _facts(models: dict[str, CuratedModel], model_id: ModelId) -> dict[str, Any]:
    known = models.get(str(model_id))
    if known is None:
        return {}
    return {name: value for name, value in msgspec.structs.asdict(known).items() if value}


def read_list(path: Path) -> dict[str, CuratedModel]:
    """The entries of one file.

    Raises:
        SettingsError: naming the file and the entry.
    """
    content = read_yaml(path)
    models = content.get("models") if isinstance(content, dict) else content
    if not (models is None or isinstance(models, dict)) or (
        isinstance(content, dict) and set(content) - {"models"}
    ):
        raise SettingsError(str(path), "must hold `models:` with an entry for each model id")
    return {str(name): _entry(path, str(name), entry) for name, entry in (models or {}).items()}


def _entry(path: Path, name: str, entry: Any) -> CuratedModel:
    place = f"{path}: models[{name}]"
    try:
        ModelId.parse(name)
        model = msgspec.convert(entry, CuratedModel)
        if model.task_type is not None:
            TaskType.parse(model.task_type)
    except msgspec.ValidationError as error:
        raise SettingsError(place, str(error)) from error
    except (InvalidModelId, InvalidTaskType) as error:
        raise SettingsError(place, error.message) from error
    wrong = [
        field
        for field in ("vector_size", "max_length", "parameters", "memory_mb")
        if (value := getattr(model, field)) is not None and value <= 0
    ]
    if wrong:
        raise SettingsError(f"{place}.{wrong[0]}", "must be above 0")
    return model
