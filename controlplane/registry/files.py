"""Which files of a model's source are needed, and the checksum they have together. No network.

A source is a folder tree as the hub has it: `config.json`, tokenizer and weights at the root, and
for sentence-transformers models a `modules.json` that names further folders. Weights in
safetensors are taken where there are any; pickles only where the operator allows them; weights for
other frameworks, exports, pictures and training leftovers never.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import msgspec

from controlplane.errors import ArtifactNotAccessible, SourceRefused, UnsafeWeights

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = ".source.json"  # beside a source's files: what was received
MODULES = "modules.json"
CONFIG = "config.json"
SAFE_INDEX = "model.safetensors.index.json"
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
_AT_ROOT = {"README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"}
_SUFFIXES = {".model", ".spm", ".jinja", ".tiktoken"}
_CONFIG = re.compile(r"(config|config_\w+|\w+_config)\.json")
_NOT_CONFIG = {"data_config.json"}  # sentence-transformers' training data
_OTHER_WEIGHTS = {".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".ckpt", ".pt", ".pth", ".bin"}


Phase = Literal[
    "downloading", "exporting", "installing", "switching", "removing", "verifying", "repairing"
]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an operation is; `fraction` is 0 to 1 within the phase, None when unknown.

    Attributes:
        phase: the first two are an installation's, the others a sync's and a verification's.
        rate: bytes per second just now.
    """

    phase: Phase
    step: str
    message: str
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    rate: float | None = None


class SourceRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows of sources.

    Attributes:
        allow_pickle: pickled weights, where a source has no others.
        allow_http: sources without TLS.
        allow_private: addresses of private networks and of this machine.
        max_bytes: the largest source, and the largest archive.
    """

    allow_pickle: bool = False
    allow_http: bool = False
    allow_private: bool = False
    max_bytes: int = 100_000 * 1024 * 1024


class SourceFile(msgspec.Struct, frozen=True):
    """One file as it was received: path within the source, bytes, sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


class FetchedSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source that was received whole and verified.

    Attributes:
        revision: commit on the hub; None for a directory.
        artifact_uri: where the bytes are, at a fixed revision.
        checksum: see `source_checksum`.
    """

    revision: str | None
    artifact_uri: str
    checksum: str
    files: tuple[SourceFile, ...]


def source_checksum(files: Iterable[SourceFile]) -> str:
    """The checksum of a version: `sha256:` and the SHA-256 of its manifest.

    The manifest has one line for each file, `{sha256 in hex}  {path}\\n` in UTF-8, sorted by path
    (by code points, that is by bytes): what `sha256sum` prints for the paths in that order, so that
    anybody can compute it with `LC_ALL=C sort`, `sha256sum` and `sha256sum` again.
    """
    lines = [f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda f: f.path)]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


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


def is_plain_path(path: str) -> bool:
    """True for a relative path that stays where it begins, in its only spelling."""
    parts = path.split("/")
    return bool(path) and not {"", ".", ".."} & set(parts) and not set(path) & set("\\\0")


def choose(
    names: Iterable[str], folders: tuple[str, ...], *, where: str, allow_pickle: bool
) -> tuple[str, ...]:
    """The paths to take, sorted.

    Args:
        names: paths of all files of the source.
        folders: from `module_folders`.
        where: the source, for messages.

    Raises:
        ArtifactNotAccessible: something that is needed is missing; the message names it.
        UnsafeWeights: there are only pickled weights and they are not allowed.
    """
    by_folder: dict[str, set[str]] = {folder: set() for folder in folders}
    for path in names:
        folder, _, name = path.rpartition("/")
        if folder in by_folder:
            by_folder[folder].add(name)
    main = [folder for folder in folders[:2] if "config.json" in by_folder[folder]]
    if not main:
        raise ArtifactNotAccessible(
            f"{where} has no config.json, so it is not a transformers or sentence-transformers "
            "model."
        )
    chosen: set[str] = set()
    pickled: list[str] = []
    for folder, inside in by_folder.items():
        safe, unsafe = _weights(inside)
        pickled += sorted(_join(folder, name) for name in unsafe)
        small = {name for name in inside if _is_small(name, at_root=not folder)}
        chosen |= {_join(folder, name) for name in small | safe | unsafe}
    if pickled and not allow_pickle:
        raise UnsafeWeights(where, pickled)
    if not any(any(_weights(by_folder[folder])) for folder in main):
        raise _no_weights(where, by_folder[main[0]])
    return tuple(sorted(chosen))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_small(name: str, *, at_root: bool) -> bool:
    if at_root and name in _AT_ROOT:
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


def refuse_code(config: bytes, where: str) -> None:
    """A configuration may name Python files of its repository to run: never done here.

    Args:
        config: content of a config.json; what is no JSON is left to the converter to explain.

    Raises:
        SourceRefused: it does.
    """
    try:
        content = json.loads(config)
    except (ValueError, RecursionError):
        return
    if isinstance(content, dict) and content.get("auto_map"):
        raise SourceRefused(
            f"{where} brings its own code (auto_map in its config.json), and ModelMora runs no "
            "code of a model's repository. If transformers has this architecture built in, remove "
            "auto_map from config.json in a copy of the model and install that with --source."
        )
