"""modelmora.yaml: where it is, and what it holds once `${NAME}` is replaced.

Beside the settings (`settings.py`) it may list the models that a deployment wants, which are none
(`registry/catalog_file.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from controlplane.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_FILE = "modelmora.yaml"
MODELS_KEY = "models"


def find_config_file(config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file that will be read: the one named, else ./modelmora.yaml if it exists, else None."""
    named = config_file or environ.get("MODELMORA_CONFIG")
    if named:
        return Path(named)
    default = Path(CONFIG_FILE)
    return default if default.exists() else None


def read_settings_section(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """What the file has beside `models:`, `${…}` replaced.

    Raises:
        SettingsError: the file cannot be read, or a variable is not set, naming the key.
    """
    content = _load(path)
    content.pop(MODELS_KEY, None)
    return {key: _expand(key, value, environ) for key, value in content.items()}


def read_models_section(path: Path, environ: Mapping[str, str]) -> Any:
    """What the file has under `models:`, `${…}` replaced; None when it has none.

    Raises:
        SettingsError: the file cannot be read, or a variable is not set, naming the place.
    """
    return _expand_deep(MODELS_KEY, _load(path).get(MODELS_KEY), environ)


def _expand_deep(place: str, value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expand_deep(f"{place}.{key}", item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_deep(f"{place}[{i}]", item, environ) for i, item in enumerate(value)]
    return _expand(place, value, environ)


def _load(path: Path) -> dict[str, Any]:
    """The file's keys and values, as they are written."""
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(str(path), "must hold keys and values at its top level")
    return {str(key): value for key, value in content.items()}


def read_yaml(path: Path) -> Any:
    """What a YAML file of the operator's holds.

    Raises:
        SettingsError: it cannot be read, or is not YAML, with the line.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(str(path), "is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise SettingsError(str(path), f"is not valid YAML: {_yaml_problem(error)}") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    """The problem and its line, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    text = str(problem or error)
    return " ".join((f"line {mark.line + 1}: {text}" if mark else text).split())


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expand(key: str, value: Any, environ: Mapping[str, str]) -> Any:
    """`${NAME}` and `${NAME:-default}` replaced from the environment (domain §10.2)."""
    if isinstance(value, list):
        return [_expand(key, item, environ) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = environ.get(name) or default
        if found is None:
            raise SettingsError(key, f"uses ${{{name}}}, which is not set in the environment")
        return found

    return _VARIABLE.sub(replacement, value)
