"""Which files of a diffusers repository are needed: model_index.json and its components' folders.

Each component keeps weights in safetensors where there are any, those of the variant `fp16` only
where it has no others, pickles only where the operator allows them. Single-file checkpoints at the
root, exports and pictures never; nor code: a pipeline of the repository's own is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from controlplane.errors import ArtifactNotAccessible, SourceRefused, UnsafeWeights
from controlplane.registry.files import is_plain_path

if TYPE_CHECKING:
    from controlplane.registry.files import SourceRules

MODEL_INDEX = "model_index.json"

_AT_ROOT = {MODEL_INDEX, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"}
_SMALL = {".json", ".txt", ".model", ".spm", ".jinja", ".tiktoken"}
_STEM = r"(?:diffusion_pytorch_model|model|pytorch_model)"
_PART = r"(?:-\d+-of-\d+)?"
_PLAIN = re.compile(_STEM + _PART + r"\.safetensors")
_HALF = re.compile(_STEM + rf"(?:\.fp16{_PART}|{_PART}\.fp16)\.safetensors")
_PICKLE = re.compile(_STEM + _PART + r"\.bin")
_INDEX = re.compile(_STEM + r"\.(safetensors|bin)\.index(\.\w+)?\.json")
# What a component without weights is configured by; a network has a config.json.
_NETWORK = "config.json"


def component_folders(index: bytes, where: str) -> tuple[str, ...]:
    """The folders of a pipeline's components; the root, "", first.

    Args:
        index: content of model_index.json.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: it is not what diffusers writes.
        SourceRefused: its pipeline is code of the repository's own.
    """
    try:
        content = json.loads(index)
        pipeline = content["_class_name"]
        entries = {str(name): entry for name, entry in content.items() if isinstance(entry, list)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactNotAccessible(f"{where} has a {MODEL_INDEX} that cannot be read.") from error
    if not isinstance(pipeline, str):
        raise SourceRefused(
            f"{where} brings a pipeline of its own (_class_name in its {MODEL_INDEX}), which "
            "ModelMora does not run; take a repository of one of diffusers' pipelines."
        )
    used = [name for name, entry in entries.items() if entry and entry[0] is not None]
    for name in used:
        if not is_plain_path(name) or "/" in name:
            raise ArtifactNotAccessible(f"{where} names the folder {name!r} in its {MODEL_INDEX}.")
    return ("", *sorted(name for name in used if name not in ("_class_name", "_name_or_path")))


def choose(by_folder: dict[str, set[str]], *, where: str, rules: SourceRules) -> tuple[str, ...]:
    """The paths to take, sorted.

    Args:
        by_folder: the names in each of `component_folders`.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: a component is missing, or has no weights that can be read.
        UnsafeWeights: it has pickled weights alone and they are not allowed.
    """
    chosen = {name for name in by_folder[""] if name in _AT_ROOT}
    pickled: list[str] = []
    for folder, names in by_folder.items():
        if not folder:
            continue
        if not names:
            raise ArtifactNotAccessible(f"{where} lacks {folder}/, which its {MODEL_INDEX} names.")
        weights, safe = _weights(names)
        if _NETWORK in names and not weights:
            raise ArtifactNotAccessible(
                f"{where} has no weights in {folder}/ that can be read: safetensors are needed."
            )
        pickled += [] if safe else sorted(f"{folder}/{name}" for name in weights)
        chosen |= {f"{folder}/{name}" for name in names if _is_small(name)}
        chosen |= {f"{folder}/{name}" for name in weights | _indices(names, weights)}
    if pickled and not rules.allow_pickle:
        raise UnsafeWeights(where, pickled)
    return tuple(sorted(chosen))


def _is_small(name: str) -> bool:
    return PurePosixPath(name).suffix in _SMALL and not _INDEX.fullmatch(name)


def _weights(names: set[str]) -> tuple[set[str], bool]:
    """A component's weights, and whether they are safe; the best kind that there is."""
    for pattern, safe in ((_PLAIN, True), (_HALF, True), (_PICKLE, False)):
        found = {name for name in names if pattern.fullmatch(name)}
        if found:
            whole = {name for name in found if "-of-" not in name}
            return (whole or found), safe
    return set(), True


def _indices(names: set[str], weights: set[str]) -> set[str]:
    """The index of weights in parts: of the same kind and variant."""
    parts = [name for name in weights if "-of-" in name]
    if not parts:
        return set()
    suffix, half = PurePosixPath(parts[0]).suffix, ".fp16" in parts[0]
    return {
        name
        for name in names
        if (match := _INDEX.fullmatch(name))
        and match[1] == suffix.removeprefix(".")
        and match[2] == (".fp16" if half else None)
    }
