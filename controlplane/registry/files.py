"""What a source is made of: its files, rules and progress, and the checksum they have together.

A source is a folder tree as the hub has it: `config.json`, tokenizer and weights at the root, and
for sentence-transformers models a `modules.json` that names further folders. `selection.py` says
which of the files are taken.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = ".source.json"  # beside a source's files: what was received
MODULES = "modules.json"
CONFIG = "config.json"
SAFE_INDEX = "model.safetensors.index.json"


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
        ready_dirs: folders whose ready-made Triton models are trusted, whoever owns them.
        allow_remote_ready: ready-made Triton models from archives and S3.
        trust_code: Python files beside the configuration, for a version that may run them.
        any_layout: the files of a plugin's task, which need not be a transformers model's.
    """

    allow_pickle: bool = False
    allow_http: bool = False
    allow_private: bool = False
    max_bytes: int = 100_000 * 1024 * 1024
    ready_dirs: tuple[str, ...] = ()
    allow_remote_ready: bool = False
    trust_code: bool = False
    any_layout: bool = False


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


def is_plain_path(path: str) -> bool:
    """True for a relative path that stays where it begins, in its only spelling."""
    parts = path.split("/")
    return bool(path) and not {"", ".", ".."} & set(parts) and not set(path) & set("\\\0")
