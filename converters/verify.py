"""Compares an exported graph, run by ONNX Runtime, with the PyTorch model it came from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from converters.engines import Graph
from converters.errors import ArtifactNotAccessible, ExportFailed
from converters.likeness import cosines
from converters.tokenization import encode, open_tokenizer

# Read once, when ONNX Runtime is imported: since 1.29 it reports to Microsoft and leaves a file in
# the temporary folder unless this is set.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from converters.sentence_layers import SentenceEncoder
    from converters.tokenization import Tokenization

    Inputs = dict[str, NDArray[np.int64]]
    Vectors = NDArray[np.float32]

MIN_COSINE = 0.9999
MAX_ABS_DIFF = 1e-4

# Texts are cut here where the model would read on: the cost of attention grows with the square of
# the length, and a graph that is right for 600 tokens has no reason to be wrong for 8,000.
_LONGEST = 600

_SENTENCE = (
    "Embeddings turn a text into a vector whose direction says what the text is about, so that "
    "texts of one meaning lie close together and a search is a walk to the nearest neighbours"
)
_SCRIPTS = (
    "Der schnelle braune Fuchs springt über den faulen Hund, nicht wahr? Äpfel, Öl, Übung, Maß.",
    "Les élèves naïfs ont mangé des crêpes à Noël près de l'hôtel.",
    "El niño pequeño soñó con un pingüino en la montaña.",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Şişli'de çay içtik.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ο ΟΔΥΣΣΕΥΣ γύρισε στην Ιθάκη μετά από είκοσι χρόνια.",  # noqa: RUF001 - Greek it is
    "素早い茶色の狐がのろまな犬を飛び越える。コンピューター。",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好。",
    "다람쥐 헌 쳇바퀴에 타고파. 오늘 날씨가 좋네요.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول.",
    "השועל החום המהיר קופץ מעל הכלב העצלן.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
)
_ODD = (
    "",
    " ",
    "\n\t \u00a0",
    "a",
    "😀",
    "🚀🎉 launch day! 👩‍👩‍👧‍👦 🇪🇺 ❤️",
    "<s> </s> [CLS] [SEP] [MASK] <pad> <|endoftext|>",
    "def f(x):\n    return {'a': [x**2, 0x1F, 1e-9]}  # code",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "ALL CAPITALS AND CamelCase AND snake_case",
    "e\u0301 and é, ﬁ and fi, \u200bzero\u200bwidth, \ufeffmark",
    "0123456789 3.14159 -273.15 1,000,000 ½ ²",
    "!!! ??? ... --- ,,, ;;;",
    "x" * 120,
)
_WORD_COUNTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 80)
_BATCH_SIZES = (1, 1, 2, 4, 8, 8, 8, 5)

# Batch sizes that engines are measured with, and tokens of their texts: what most sentences have.
_TIMED = (1, 8, 32)
_TIMED_TOKENS = 32


@dataclass(frozen=True)
class Parity:
    """How close the graph comes to PyTorch, the worst over all texts.

    Attributes:
        min_cosine: of the two vectors of one text; NaN when one has a value that is no number.
        max_abs_diff: largest difference of two components.
        scale: largest component of PyTorch's vectors, at least 1.
    """

    texts: int
    min_cosine: float
    max_abs_diff: float
    scale: float = 1.0

    @property
    def holds(self) -> bool:
        """Cosine >= 0.9999 and difference <= 1e-4; relative to the largest component for vectors
        that are not of unit length, since float32 itself is only exact to 1e-7 of it.
        """
        # Written so that NaN fails.
        return self.min_cosine >= MIN_COSINE and self.max_abs_diff <= MAX_ABS_DIFF * self.scale

    def __str__(self) -> str:
        return f"min cosine {self.min_cosine:.7f}, max abs diff {self.max_abs_diff:.1e}"


def verification_batches(max_seq_length: int) -> list[list[str]]:
    """39 texts in batches of 1 to 8: many lengths and scripts, blanks, symbols, and two that must
    be cut. These two are in small batches: everything beside them is padded to their length.
    """
    words = _SENTENCE.split()
    lengths = [" ".join((words * 3)[i : i + n]) for i, n in enumerate(_WORD_COUNTS)]
    texts = [*_ODD, *_SCRIPTS, *lengths]
    # A fixed shuffle puts short texts beside long ones; 17 and 37 texts have no common factor.
    mixed = iter([texts[i * 17 % len(texts)] for i in range(len(texts))])
    batches = [list(islice(mixed, size)) for size in _BATCH_SIZES]
    over_long = " ".join(words * (1 + min(max_seq_length, _LONGEST) // len(words)))
    batches[2].append(f"{over_long} {over_long}")
    return [*batches, [over_long + "."]]


class Check:
    """One comparison: PyTorch's vectors are computed once, then any number of exports is held
    against them.

    Raises:
        ArtifactNotAccessible: the tokenizer gives tokens that the model does not have.
        ExportFailed: PyTorch's own vectors hold NaN or infinity.
    """

    def __init__(
        self, encoder: SentenceEncoder, tokenizer_file: Path, tokenization: Tokenization
    ) -> None:
        limit = min(tokenization.max_seq_length, _LONGEST)
        tokenizer = open_tokenizer(tokenizer_file, replace(tokenization, max_seq_length=limit))
        short = open_tokenizer(
            tokenizer_file, replace(tokenization, max_seq_length=min(limit, _TIMED_TOKENS))
        )
        self._timed = {size: encode(short, _timed_texts(size), tokenization) for size in _TIMED}
        batches = verification_batches(limit)
        self._batches = [encode(tokenizer, batch, tokenization) for batch in batches]
        _require_known_tokens(encoder, self._batches)
        self._expected = [_run_torch(encoder, batch) for batch in self._batches]
        if not all(_finite(vectors) for vectors in self._expected):
            raise ExportFailed("The model itself gives vectors with values that are no numbers.")

    @property
    def dimension(self) -> int:
        return int(self._expected[0].shape[1])

    def compare(
        self, model_file: Path, *, threads: int | None, progress: Callable[[float], None]
    ) -> Parity:
        """Run the graph on every batch and measure; `progress` is told the share done.

        Raises:
            Exception: whatever ONNX Runtime raises for a graph it cannot load or run.
        """
        session = _session(model_file, threads)
        names = [value.name for value in session.get_inputs()]
        return self._compare(
            lambda batch: session.run(None, {name: batch[name] for name in names})[0], progress
        )

    def compare_module(
        self, module: torch.nn.Module, *, progress: Callable[[float], None]
    ) -> Parity:
        """As `compare`, for a module that takes all inputs in the order of the tokenization.

        Raises:
            Exception: whatever torch raises for a module that it cannot run.
        """
        return self._compare(lambda batch: _run_torch(module, batch), progress)

    def _compare(
        self, run: Callable[[Inputs], Vectors], progress: Callable[[float], None]
    ) -> Parity:
        found = []
        for number, batch in enumerate(self._batches, start=1):
            found.append(run(batch))
            progress(number / len(self._batches))
        return measure(np.concatenate(self._expected), np.concatenate(found))

    def graph(
        self, files: Mapping[str, Path], input_names: Sequence[str], output_name: str
    ) -> Graph:
        """What engines are measured with, see `engines.choose`: these files, the batches of this
        comparison, and batches of 1, 8 and 32 texts of 32 tokens."""

        def named(batch: Inputs) -> Inputs:
            return {name: batch[name] for name in input_names}

        return Graph(
            files=files,
            input_names=input_names,
            output_names=[output_name],
            timed={size: named(batch) for size, batch in self._timed.items()},
            checked=[
                (named(batch), {output_name: expected})
                for batch, expected in zip(self._batches, self._expected, strict=True)
            ],
        )


def _timed_texts(count: int) -> list[str]:
    """Sentences of more tokens than are timed, so that all are cut to one length."""
    words = _SENTENCE.split() * 3
    return [" ".join(words[i : i + 2 * _TIMED_TOKENS]) for i in range(count)]


def measure(expected: Vectors, found: Vectors) -> Parity:
    """Parity of two [texts, dimension] arrays; shapes that differ or NaN anywhere fail it."""
    if expected.shape != found.shape or not (_finite(expected) and _finite(found)):
        return Parity(len(expected), float("nan"), float("nan"))
    a, b = expected.astype(np.float64), found.astype(np.float64)
    return Parity(
        texts=len(a),
        min_cosine=float(cosines(a, b).min()),
        max_abs_diff=float(np.abs(a - b).max()),
        scale=max(1.0, float(np.abs(a).max())),
    )


def _require_known_tokens(encoder: SentenceEncoder, batches: list[Inputs]) -> None:
    rows = encoder.token_count
    highest = max(int(batch["input_ids"].max()) for batch in batches)
    if rows is not None and highest >= rows:
        raise ArtifactNotAccessible(
            f"The tokenizer does not fit the model: it gives token {highest} of {rows}."
        )


def _finite(vectors: Vectors) -> bool:
    return bool(np.isfinite(vectors).all())


def _run_torch(encoder: torch.nn.Module, batch: Inputs) -> Vectors:
    with torch.no_grad():
        vectors: Vectors = encoder(*(torch.from_numpy(batch[name]) for name in batch)).numpy()
    return vectors


def _session(model_file: Path, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        str(model_file), options, providers=["CPUExecutionProvider"]
    )
