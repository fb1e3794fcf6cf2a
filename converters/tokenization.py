"""The artefact's tokenizer: written for the backend, and used here exactly as it uses it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence

from converters.errors import ArtifactNotAccessible

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

TOKENIZER_FILE = "tokenizer.json"

# transformers makes up an empty vocabulary when there is no file at all; hence this list.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tekken.json",
    "*.model",
    "*.tiktoken",
)


@dataclass(frozen=True)
class Tokenization:
    """How texts become the graph's inputs: the manifest's fields of the same names.

    Attributes:
        input_names: the graph's inputs, of input_ids, attention_mask and token_type_ids.
        max_seq_length: tokens, special ones included; longer texts are cut.
        padding_side, truncation_side: `right` or `left`.
        do_lower_case: prompt included.
        prompt: put before every text.
    """

    input_names: tuple[str, ...]
    max_seq_length: int
    pad_token_id: int
    pad_token_type_id: int
    padding_side: str
    truncation_side: str
    do_lower_case: bool = False
    prompt: str = ""


def require_vocabulary(folder: Path) -> None:
    """Raise ArtifactNotAccessible unless `folder` holds a tokenizer's files."""
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        raise ArtifactNotAccessible(
            f"{folder} has no tokenizer: neither tokenizer.json nor a vocabulary file."
        )


def write_tokenizer(loaded: Any, folder: Path, output: Path, *, texts: list[str]) -> bool:
    """Write `output`/tokenizer.json; True when it is the source's own file.

    transformers builds many tokenizers anew from the vocabulary and does not always get what
    tokenizer.json says. sentence-transformers users get its tokens, so its version is written
    wherever the two differ on `texts`.

    Args:
        loaded: transformers' fast tokenizer.
    """
    target, source = output / TOKENIZER_FILE, folder / TOKENIZER_FILE
    if source.is_file() and _agree(loaded, _parse(source), texts):
        shutil.copyfile(source, target)
        return True
    backend = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(target))
    return False


def open_tokenizer(path: Path, tokenization: Tokenization) -> Tokenizer:
    """The tokenizer as the backend opens it: cut at max_seq_length, padding left to `encode`.

    do_lower_case becomes a step before the tokenizer's own normalizers, as sentence-transformers
    has it: Python's `str.lower` treats the Greek final sigma and special tokens differently.
    """
    tokenizer = _parse(path)
    if tokenization.do_lower_case:
        own = tokenizer.normalizer
        tokenizer.normalizer = Sequence([Lowercase()] if own is None else [Lowercase(), own])
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokenization.max_seq_length, direction=tokenization.truncation_side)
    return tokenizer


def encode(
    tokenizer: Tokenizer, texts: Iterable[str | tuple[str, str]], tokenization: Tokenization
) -> dict[str, NDArray[np.int64]]:
    """The graph's inputs for a batch of texts: INT64 [batch, longest], padded as the manifest says.

    Pairs of texts take no prompt.

    A batch whose texts have no token at all is one token of padding wide: ONNX Runtime and torch
    refuse sequences of length 0.
    """
    encodings = tokenizer.encode_batch(
        [tokenization.prompt + text if isinstance(text, str) else text for text in texts]
    )
    width = max(1, *(len(encoding) for encoding in encodings))
    columns = {
        "input_ids": ([e.ids for e in encodings], tokenization.pad_token_id),
        "attention_mask": ([e.attention_mask for e in encodings], 0),
        "token_type_ids": ([e.type_ids for e in encodings], tokenization.pad_token_type_id),
    }
    return {
        name: _padded(*columns[name], width=width, left=tokenization.padding_side == "left")
        for name in tokenization.input_names
    }


def _padded(rows: list[list[int]], value: int, *, width: int, left: bool) -> NDArray[np.int64]:
    out = np.full((len(rows), width), value, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        if row:
            target[slice(width - len(row), None) if left else slice(len(row))] = row
    return out


def _parse(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ArtifactNotAccessible(f"{path.name} is damaged: {error}.") from error


def _agree(loaded: Any, from_file: Tokenizer, texts: list[str]) -> bool:
    from_file.no_padding()
    from_file.no_truncation()
    expected = loaded(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    return [e.ids for e in from_file.encode_batch(texts)] == [list(ids) for ids in expected]
