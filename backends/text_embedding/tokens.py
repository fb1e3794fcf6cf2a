"""From texts to the graph's input arrays, through the Rust tokenizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from backends.errors import ArtefactError
from backends.machine import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# Read when the tokenizer's thread pool starts, at the first batch: it would count the machine's
# cores, not those this process may use.
os.environ.setdefault("RAYON_NUM_THREADS", str(usable_cores()))


class Tokenization(Protocol):
    """What an artefact says of its tokenizer; see `TextEmbeddingArtefact`."""

    @property
    def tokenizer_file(self) -> Path: ...
    @property
    def input_names(self) -> tuple[str, ...]: ...
    @property
    def max_seq_length(self) -> int: ...
    @property
    def do_lower_case(self) -> bool: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def pad_token_type_id(self) -> int: ...
    @property
    def padding_side(self) -> Literal["left", "right"]: ...
    @property
    def truncation_side(self) -> Literal["left", "right"]: ...


class TextTokenizer:
    """An artefact's tokenizer with its truncation, and the padding the graph was verified with."""

    def __init__(self, artefact: Tokenization) -> None:
        """Open the tokenizer.

        Raises:
            ArtefactError: its file is not a tokenizer.
        """
        self._artefact = artefact
        try:
            self._tokenizer = Tokenizer.from_file(str(artefact.tokenizer_file))
        except Exception as error:
            raise ArtefactError(
                f"{artefact.tokenizer_file} is not a tokenizer: {error}."
            ) from error
        # The file may carry somebody's padding to a fixed length; ours is per sub-batch.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(
            artefact.max_seq_length, direction=artefact.truncation_side
        )
        if artefact.do_lower_case:
            _lower_case_first(self._tokenizer)

    def encode(self, texts: Sequence[str | tuple[str, str]]) -> list[Any]:
        """Token ids and type ids of each text or pair, truncated, without padding.

        Of a pair that is too long the longer text is cut first.
        """
        encodings: list[Any] = self._tokenizer.encode_batch_fast(list(texts))
        return encodings

    def arrays(self, encodings: Sequence[Any], least: int = 1) -> dict[str, NDArray[np.int64]]:
        """The graph's inputs for some encodings, each `[batch, longest]`, padded.

        Args:
            least: tokens to pad to where all texts have fewer; never beyond the model's limit.

        A text without any token gets one padding token that is masked out, since a graph
        cannot run on a sequence of no length.
        """
        artefact = self._artefact
        longest = max(1, *(len(item) for item in encodings))
        # At the limit there is no position left to pad with.
        shape = (len(encodings), max(longest, min(least, artefact.max_seq_length)))
        ids = np.full(shape, artefact.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.full(shape, artefact.pad_token_type_id, dtype=np.int64)
        for row, item in enumerate(encodings):
            count = len(item)
            place = slice(0, count) if artefact.padding_side == "right" else slice(-count, None)
            if count:
                ids[row, place] = item.ids
                types[row, place] = item.type_ids
                mask[row, place] = 1
        known: Mapping[str, NDArray[np.int64]] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
        }
        return {name: known[name] for name in artefact.input_names}


def _lower_case_first(tokenizer: Any) -> None:
    """Lower-case as sentence-transformers does: before the other normalizers, after the prompt.

    In the tokenizer rather than with `str.lower`, so that special tokens written in a text
    (`[MASK]`) keep their case.
    """
    others = tokenizer.normalizer
    tokenizer.normalizer = Normalizers([Lowercase()] if others is None else [Lowercase(), others])
