"""From questions and contexts to answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.errors import BackendError, EngineError, InputError
from backends.question_answering.artefact import QuestionAnsweringArtefact, read_artefact
from backends.question_answering.spans import Answer, WindowSpan, answer_of, best_span
from backends.request_parameters import flag
from backends.request_texts import read_texts
from backends.text_embedding.tokens import TextTokenizer
from backends.text_graph import open_text_graph, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.engines import Engine


@dataclass(frozen=True)
class Question:
    """One question about one context, cut into windows."""

    context: str
    windows: tuple[Any, ...]


@dataclass(frozen=True)
class QuestionsRequest:
    """The questions of a request; `no_answer` allows the answer that there is none."""

    questions: tuple[Question, ...]
    no_answer: bool


class PairTokenizer(TextTokenizer):
    """Cuts contexts into overlapping windows, each behind its question."""

    def __init__(self, artefact: QuestionAnsweringArtefact) -> None:
        """Open the tokenizer; raises ArtefactError when its file is none."""
        super().__init__(artefact.text)
        self._window, self._stride = artefact.window, artefact.stride

    def windows(self, questions: Sequence[str], contexts: Sequence[str]) -> list[tuple[Any, ...]]:
        """Per question its windows, in the order of the context.

        Raises:
            InputError: a question that leaves the context no room.
        """
        self._tokenizer.no_truncation()
        lengths = [
            len(found)
            for found in self._tokenizer.encode_batch(list(questions), add_special_tokens=False)
        ]
        special = self._tokenizer.num_special_tokens_to_add(True)
        room = self._window - special - self._stride - 1
        for index, length in enumerate(lengths):
            if length > room:
                raise InputError(
                    f"text_input[{index}] has {length} tokens; this model reads questions of at "
                    f"most {room}."
                )
        self._tokenizer.enable_truncation(self._window, stride=self._stride, strategy="only_second")
        pairs = list(zip(questions, contexts, strict=True))
        return [(found, *found.overflowing) for found in self._tokenizer.encode_batch(pairs)]


class Reader:
    """A loaded model: an artefact with its tokenizer and its engine."""

    def __init__(
        self, artefact: QuestionAnsweringArtefact, tokenizer: PairTokenizer, engine: Engine
    ) -> None:
        self.artefact = artefact
        self._tokenizer = tokenizer
        self._engine = engine

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Reader:
        """Load the artefact in a version folder.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        tokenizer = PairTokenizer(artefact)
        return cls(artefact, tokenizer, open_text_graph(artefact.text, device_id=device_id))

    def read(
        self,
        text_input: NDArray[Any],
        context_input: NDArray[Any],
        parameters: Mapping[str, Any],
    ) -> QuestionsRequest:
        """Check and tokenise a request.

        Args:
            parameters: `handle_impossible_answer` (boolean) is read, transformers' own name.

        Raises:
            InputError: as `read_texts`; as many questions as contexts are needed, none of them
                blank, and no question longer than the window has room for.
        """
        default = self.artefact.may_have_no_answer
        no_answer = flag(parameters, "handle_impossible_answer", default)
        questions = read_texts("text_input", text_input)
        contexts = read_texts("context_input", context_input)
        if len(questions) != len(contexts):
            raise InputError(
                f"There are {len(questions)} questions in text_input and {len(contexts)} contexts "
                "in context_input; each question needs its own."
            )
        for name, texts in (("text_input", questions), ("context_input", contexts)):
            for index, text in enumerate(texts):
                if not text.strip():
                    raise InputError(f"{name}[{index}] must not be blank.")
        windows = self._tokenizer.windows(questions, contexts)
        both = zip(contexts, windows, strict=True)
        return QuestionsRequest(tuple(Question(*found) for found in both), no_answer)

    def answer(
        self,
        requests: Sequence[QuestionsRequest],
        abandoned: Callable[[int], bool] = lambda _: False,
    ) -> list[list[Answer] | BackendError]:
        """Answer all questions of all requests together; their windows share sub-batches.

        Args:
            abandoned: asked with a request's index; from then on its windows are left out.
        """
        owners: list[int] = []
        encodings: list[Any] = []
        for index, request in enumerate(requests):
            for question in request.questions:
                owners += [index] * len(question.windows)
                encodings += question.windows
        rows = iter(run_rows(self._engine, self._tokenizer, encodings, owners, abandoned))
        results: list[list[Answer] | BackendError] = []
        for request in requests:
            mine = [[next(rows) for _ in question.windows] for question in request.questions]
            try:
                results.append(
                    [
                        self._answer(question, found, no_answer=request.no_answer)
                        for question, found in zip(request.questions, mine, strict=True)
                    ]
                )
            except BackendError as error:
                results.append(error)
        return results

    def _answer(self, question: Question, rows: Sequence[Any], *, no_answer: bool) -> Answer:
        best: tuple[WindowSpan, Any] | None = None
        none_at_all = 1.0
        for window, row in zip(question.windows, rows, strict=True):
            span = self._span(window, row)
            if span is None:
                continue
            none_at_all = min(none_at_all, span.no_answer)
            if best is None or span.score > best[0].score:
                best = span, window
        if best is None:  # characters of which the tokenizer keeps none
            return Answer("", 0.0, 0, 0)
        if no_answer and none_at_all > best[0].score:
            return Answer("", none_at_all, 0, 0)
        return answer_of(question.context, best[1], best[0])

    def _span(self, window: Any, row: Any) -> WindowSpan | None:
        if isinstance(row, BackendError):
            raise row
        count = len(window)
        starts, ends = row["start_logits"][:count], row["end_logits"][:count]
        if starts.shape != (count,) or not (np.isfinite(starts).all() and np.isfinite(ends).all()):
            raise EngineError("The model returned values that are not finite, or too few.")
        sequences = window.sequence_ids
        return best_span(
            starts,
            ends,
            np.array([number == 1 for number in sequences]),
            first_is_special=sequences[0] is None,
            longest=self.artefact.max_answer_tokens,
        )
