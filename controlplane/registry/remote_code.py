"""Code that a model's repository brings along: two people must want it, and then it runs alone.

`auto_map` in a `config.json` names Python files of the repository that transformers would import.
They are refused before the weights come, unless the version was registered with
`trust_remote_code` and the server's administrator has set `allow_remote_code`. Then the files are
downloaded, hashed and locked like all others, and imported by the converter's process: never by
the control plane, and never when the model is served, which an exported graph is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import structlog

from controlplane.errors import ArtifactNotAccessible, RemoteCodeRefused, SourceRefused

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from controlplane.registry.model import ModelVersion

log = structlog.get_logger(__name__)

SUFFIX = ".py"


def check_permitted(what: str, *, trusted: bool, allowed: bool) -> None:
    """The administrator's half: a version that trusts code is for servers that allow it.

    Args:
        what: the version, for the message.
        trusted: the version was registered with `trust_remote_code`.
        allowed: the setting `allow_remote_code`.

    Raises:
        RemoteCodeRefused.
    """
    if trusted and not allowed:
        raise RemoteCodeRefused(
            f"{what} is to be installed with trust_remote_code, and this server runs no code of "
            "models' repositories. Its administrator can allow it with "
            "MODELMORA_ALLOW_REMOTE_CODE=true."
        )


def check_conversion(version: ModelVersion, *, allowed: bool) -> bool:
    """The last look before code may run, told in the log: True when the converter may run it.

    Raises:
        RemoteCodeRefused.
    """
    what = f"{version.model_id} version {version.version}"
    check_permitted(what, trusted=version.trust_remote_code, allowed=allowed)
    if version.trust_remote_code:
        log.warning(
            "the converter may run code of the repository",
            model_id=version.model_id,
            version=version.version,
            revision=version.revision,
            registered_by=version.created_by,
            allowed_by="allow_remote_code",
        )
    return version.trust_remote_code


def refuse_untrusted(config: bytes, path: str, where: str, *, trusted: bool) -> None:
    """The user's half: a configuration that names code is for versions that trust it.

    Args:
        config: content of a config.json; what is no JSON is left to the converter to explain.
        path: of the file within the source.
        where: the source, for messages.
        trusted: the version was registered with `trust_remote_code`.

    Raises:
        RemoteCodeRefused: it was not.
        SourceRefused: the code is another repository's.
    """
    modules = _modules(config)
    if modules and not trusted:
        raise RemoteCodeRefused(
            f"{where} brings its own code (auto_map in its {path}), which runs only where "
            "somebody has said so. If transformers has this architecture built in, remove auto_map "
            "in a copy of the model and install that with --source. If you have read the code and "
            "trust it: install with --trust-remote-code, on a server with "
            "MODELMORA_ALLOW_REMOTE_CODE=true."
        )
    elsewhere = next((module for module in modules if "--" in module), None)
    if elsewhere is not None:
        raise SourceRefused(
            f"{where} wants code of another repository ({elsewhere}), which is neither fixed to a "
            "commit nor hashed: take a copy of the model with that code beside its config.json."
        )


def require_code(config: bytes, path: str, where: str, names: Collection[str]) -> None:
    """What a configuration names must be among the files that are received.

    Args:
        names: paths of these files.

    Raises:
        ArtifactNotAccessible: naming what is missing.
    """
    folder = path.rpartition("/")[0]
    for module in _modules(config):
        file = f"{folder}/{module}{SUFFIX}" if folder else f"{module}{SUFFIX}"
        if file not in names:
            raise ArtifactNotAccessible(f"{where} lacks {file}, which its {path} names.")


def _modules(config: bytes) -> list[str]:
    """`modeling` for `modeling.OwnModel`, `org/name--modeling` for code of another repository."""
    try:
        content = json.loads(config)
    except (ValueError, RecursionError):
        return []
    found = content.get("auto_map") if isinstance(content, dict) else None
    return sorted({text.rpartition(".")[0] or text for text in _references(found)})


def _references(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _references(value)
    elif isinstance(found, list):  # a tokenizer's slow and fast class
        for value in found:
            yield from _references(value)
    elif found:
        yield str(found)
