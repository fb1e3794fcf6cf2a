"""What a `source_url` may be: rules only, nothing is asked of disk or network.

/srv/models/minilm, file:///srv/models/minilm     a directory of the server's machine
https://host/path/model.tar.gz#sha256=…           an archive of a model's folder
s3://bucket/path/of/the/model                     all objects below a prefix
s3://bucket/path/model.zip                        an archive
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_WEIGHTS = (".safetensors", ".onnx", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_DIGEST = re.compile(r"sha256=[0-9a-f]{64}")
_HUBS = ("huggingface.co", "hf.co", "www.huggingface.co")
_LONGEST = 2000
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

_ANY = (
    "must be an absolute path or file:// URL of a directory on the server's machine, an https:// "
    "address of an archive, or s3://bucket/prefix; leave it out for the HuggingFace hub"
)
_ARCHIVE = f"must name an archive of the model's folder ({', '.join(ARCHIVES)})"


class SourceUrl(NamedTuple):
    """A `source_url` taken apart.

    Attributes:
        kind: how its files are had.
        shown: the URL without its query and fragment, which may carry secrets.
        sha256: digest of the archive, where the fragment `#sha256=…` gives it.
    """

    kind: Literal["directory", "web archive", "s3 archive", "s3"]
    shown: str
    sha256: str | None = None


def parse_source_url(text: str) -> SourceUrl | str:
    """The source, or what is wrong with it in words for the field `source_url`."""
    if len(text) > _LONGEST or _CONTROL.search(text):
        return f"must be at most {_LONGEST} characters, none of them a control character"
    if text.startswith(("/", "file:///", "file://localhost/")):
        return SourceUrl("directory", text)
    if " " in text:
        return "must not contain spaces: write %20"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return _ANY
    if parts.username is not None or parts.password is not None:
        return "must not carry a user or a password: everybody who may list models would see it"
    if parts.scheme in ("http", "https") and parts.hostname:
        return _web(text)
    return _s3(text) if parts.scheme == "s3" else _ANY


def is_archive(path: str) -> bool:
    """True for the name of an archive that can be read."""
    return path.lower().endswith(ARCHIVES)


def _web(text: str) -> SourceUrl | str:
    parts = urlsplit(text)
    path = unquote(parts.path).lower()
    if parts.hostname in _HUBS and not is_archive(path):
        return "must be left out for models of the HuggingFace hub: their id names them"
    if path.endswith(".zst"):
        return "must not be a zstd archive, which cannot be read here: use .tar.gz, .tar.xz or .zip"
    if path.endswith(_WEIGHTS):
        return (
            "is a single file of weights, and a model is a folder with its configuration and "
            f"tokenizer too: it {_ARCHIVE}"
        )
    if not is_archive(path):
        return _ARCHIVE
    if parts.fragment and not _DIGEST.fullmatch(parts.fragment):
        return "may end in #sha256= and 64 lowercase hexadecimal digits, nothing else"
    shown = parts._replace(query="", fragment="").geturl()
    return SourceUrl("web archive", shown, parts.fragment.removeprefix("sha256=") or None)


def _s3(text: str) -> SourceUrl | str:
    parts = urlsplit(text)
    if not _BUCKET.fullmatch(parts.netloc) or ".." in parts.netloc:
        return "must be s3://bucket/prefix with a valid name of a bucket"
    if parts.query or parts.fragment:
        return "must be s3://bucket/prefix, without ? and #"
    if parts.path.lower().endswith(_WEIGHTS):
        return (
            "is a single file of weights, and a model is a folder with its configuration and "
            "tokenizer too: name its prefix, or an archive of it"
        )
    return SourceUrl("s3 archive" if is_archive(parts.path) else "s3", text)
