"""Which files of a model's source are needed, and what is wrong with them. No network.

Weights in safetensors are taken where there are any; pickles only where the operator allows them;
code only where it is trusted (`remote_code.py`); weights for other frameworks, exports, pictures
and training leftovers never. Files for a plugin's task: `selection_any.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from controlplane.errors import ArtifactNotAccessible, UnsafeWeights
from controlplane.registry import (
    remote_code,
    selection_any,
    selection_diffusers,
    selection_voices,
)
from controlplane.registry.files import CONFIG, MODULES, SAFE_INDEX, is_plain_path
from controlplane.registry.selection_diffusers import MODEL_INDEX
from controlplane.registry.selection_voices import VOICES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from controlplane.registry.files import SourceRules
    from controlplane.registry.intake import Intake

_PICKLE_INDEX = "pytorch_model.bin.index.json"
_SAFE_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLE_SHARD = re.compile(r"pytorch_model-\d+-of-\d+\.bin")
_NAMES = {
    MODULES,
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "unigram.json",
    "bpe.codes",
    "chat_template.json",
}
_AT_ROOT = {VOICES, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"}
_SUFFIXES = {".model", ".spm", ".jinja", ".tiktoken"}
_CONFIG = re.compile(r"(config|config_\w+|\w+_config)\.json")
_NOT_CONFIG = {"data_config.json"}  # sentence-transformers' training data
_OTHER_WEIGHTS = {".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".ckpt", ".pt", ".pth", ".bin"}


def layout_file(names: Iterable[str]) -> str | None:
    """The file that names further folders, among the paths of a source; None where none does."""
    there = set(names)
    return next((name for name in (MODULES, MODEL_INDEX, VOICES) if name in there), None)


def layout_folders(layout: str | None, content: bytes | None, where: str) -> tuple[str, ...]:
    """Folders that belong to the model; the root, "", first.

    Args:
        layout: from `layout_file`, and the content of that file.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: the file is not what its library writes.
        SourceRefused: a pipeline that is code of the repository's own.
    """
    if layout == MODEL_INDEX and content is not None:
        return selection_diffusers.component_folders(content, where)
    if layout == VOICES and content is not None:
        return selection_voices.voice_folders(content, where)
    return module_folders(content, where)


def module_folders(content: bytes | None, where: str) -> tuple[str, ...]:
    """Folders that belong to the model, by its modules.json; the root, "", always among them.

    Args:
        content: of modules.json; None when there is none.
        where: the source, for the message.

    Raises:
        ArtifactNotAccessible: modules.json is not what sentence-transformers writes.
    """
    if content is None:
        return ("",)
    try:
        paths = [str(module["path"]).strip("/") for module in json.loads(content)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactNotAccessible(f"{where} has a {MODULES} that cannot be read.") from error
    for path in paths:
        if path and not is_plain_path(path):
            raise ArtifactNotAccessible(f"{where} names the folder {path!r} in its {MODULES}.")
    return tuple(dict.fromkeys(["", *paths]))


def choose(
    names: Iterable[str], folders: tuple[str, ...], *, where: str, rules: SourceRules
) -> tuple[str, ...]:
    """The paths to take, sorted.

    Args:
        names: paths of all files of the source.
        folders: from `layout_folders`.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: something that is needed is missing; the message names it.
        UnsafeWeights: there are only pickled weights and they are not allowed.
    """
    if rules.any_layout:
        return selection_any.choose(names, where=where, rules=rules)
    by_folder: dict[str, set[str]] = {folder: set() for folder in folders}
    for path in names:
        folder, _, name = path.rpartition("/")
        if folder in by_folder:
            by_folder[folder].add(name)
    layout = layout_file(by_folder[""])
    if layout == MODEL_INDEX:
        return selection_diffusers.choose(by_folder, where=where, rules=rules)
    main = [folder for folder in folders[:2] if "config.json" in by_folder[folder]]
    if not main:
        raise ArtifactNotAccessible(
            f"{where} has no config.json, so it is not a transformers or sentence-transformers "
            "model; nor has it the config.pbtxt of a ready-made Triton model."
        )
    chosen: set[str] = set()
    pickled: list[str] = []
    for folder, inside in by_folder.items():
        safe, unsafe = _weights(inside)
        pickled += sorted(_join(folder, name) for name in unsafe)
        small = {name for name in inside if _is_small(name, rules, at_root=not folder)}
        if layout == VOICES:
            small |= {name for name in inside if name.endswith(selection_voices.SUFFIX)}
        chosen |= {_join(folder, name) for name in small | safe | unsafe}
    if pickled and not rules.allow_pickle:
        raise UnsafeWeights(where, pickled)
    if not any(any(_weights(by_folder[folder])) for folder in main):
        raise _no_weights(where, by_folder[main[0]])
    return tuple(sorted(chosen))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_small(name: str, rules: SourceRules, *, at_root: bool) -> bool:
    if at_root and name in _AT_ROOT:
        return True
    if rules.trust_code and name.endswith(remote_code.SUFFIX):
        return True
    if name in _NAMES or PurePosixPath(name).suffix in _SUFFIXES:
        return True
    return bool(_CONFIG.fullmatch(name)) and name not in _NOT_CONFIG


def _weights(names: set[str]) -> tuple[set[str], set[str]]:
    """Weights of one folder: (safetensors, pickles); pickles only where nothing else is there."""
    if "model.safetensors" in names:
        return {"model.safetensors"}, set()
    if SAFE_INDEX in names:
        return {SAFE_INDEX, *(name for name in names if _SAFE_SHARD.fullmatch(name))}, set()
    if "pytorch_model.bin" in names:
        return set(), {"pytorch_model.bin"}
    if _PICKLE_INDEX in names:
        return set(), {_PICKLE_INDEX, *(name for name in names if _PICKLE_SHARD.fullmatch(name))}
    return set(), set()


def _no_weights(where: str, names: set[str]) -> ArtifactNotAccessible:
    found = sorted(
        name for name in names if PurePosixPath(name).suffix in _OTHER_WEIGHTS | {".safetensors"}
    )
    has = f"it has {', '.join(found[:5])}" if found else "it has none at all"
    return ArtifactNotAccessible(
        f"{where} has no weights that can be converted: model.safetensors, or "
        f"{SAFE_INDEX} with its parts, is needed; {has}."
    )


def check_shards(index: bytes, index_path: str, files: Iterable[str], where: str) -> None:
    """Every part that an index of sharded weights names must have been received.

    Raises:
        ArtifactNotAccessible: naming a missing part, or saying that the index cannot be read.
    """
    folder = index_path.rpartition("/")[0]
    try:
        parts = {_join(folder, str(name)) for name in json.loads(index)["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactNotAccessible(f"{where} has a {index_path} that cannot be read.") from error
    missing = sorted(parts - set(files))
    if missing:
        raise ArtifactNotAccessible(
            f"{where} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more parts" if len(missing) > 1 else "")
            + f", which {index_path} names."
        )


def check_received(intake: Intake, chosen: Collection[str], where: str, rules: SourceRules) -> None:
    """Look into the small files that have come, for what spares the large ones.

    Args:
        chosen: from `choose`; those that have not come yet are passed over.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: a part of the weights, or code that is needed, is missing.
        SourceRefused: it brings code that is not trusted.
    """
    for name in filter(intake.has, chosen):
        if name.endswith(SAFE_INDEX):
            check_shards(intake.read(name), name, chosen, where)
        if name.rpartition("/")[2] == CONFIG:
            content = intake.read(name)
            remote_code.refuse_untrusted(content, name, where, trusted=rules.trust_code)
            remote_code.require_code(content, name, where, chosen)
