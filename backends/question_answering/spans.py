"""Choosing an answer: the likeliest span of the context over all windows.

The rules are those of transformers' question-answering pipeline (4.57,
`pipelines/question_answering.py`: `select_starts_ends`, `decode_spans`, `get_indices`), which
transformers 5 has no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NEVER = -10_000.0


@dataclass(frozen=True)
class Answer:
    """A part of the context: `text` is context[start:end]; empty for "there is no answer"."""

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class WindowSpan:
    """The best span of one window: token numbers, its probability, and that of no answer."""

    first: int
    last: int
    score: float
    no_answer: float


def best_span(
    start_logits: NDArray[Any],
    end_logits: NDArray[Any],
    in_context: NDArray[np.bool_],
    *,
    first_is_special: bool,
    longest: int,
) -> WindowSpan | None:
    """The likeliest span within the context; None where the window holds none of it.

    Args:
        start_logits, end_logits: FP32 [tokens].
        in_context: which tokens belong to the context, not to the question or the template.
        first_is_special: the first token stands for "no answer" and takes its share.
        longest: tokens of an answer at most.
    """
    if not in_context.any():
        return None
    counted = in_context.copy()
    counted[0] |= first_is_special
    starts, ends = _softmax(start_logits, counted), _softmax(end_logits, counted)
    no_answer = float(starts[0] * ends[0]) if first_is_special else 1.0
    starts, ends = starts * in_context, ends * in_context
    scores = np.tril(np.triu(np.outer(starts, ends)), longest - 1)
    scores[~in_context] = -1.0  # a span of probability 0 is still one of the context
    scores[:, ~in_context] = -1.0
    first, last = divmod(int(scores.argmax()), scores.shape[1])
    if last < first:  # all underflowed: any token will do
        first = last = int(np.flatnonzero(in_context)[0])
    return WindowSpan(first, last, max(0.0, float(scores[first, last])), no_answer)


def _softmax(logits: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    values = np.where(counted, logits.astype(np.float64), _NEVER)
    shares: NDArray[np.float64] = np.exp(values - values.max())
    shares /= shares.sum()
    return shares


def answer_of(context: str, encoding: Any, span: WindowSpan) -> Answer:
    """A span's text: whole words, as the tokenizer sees words.

    Args:
        encoding: of the window, by the `tokenizers` library: question first, context second.
    """
    first_word, last_word = encoding.token_to_word(span.first), encoding.token_to_word(span.last)
    start, end = encoding.offsets[span.first][0], encoding.offsets[span.last][1]
    if first_word is not None and last_word is not None:
        first, last = encoding.word_to_chars(first_word, 1), encoding.word_to_chars(last_word, 1)
        if first is not None and last is not None:
            start, end = first[0], last[1]
    return Answer(context[start:end], span.score, start, end)
