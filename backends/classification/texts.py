"""Texts, and pairs of texts, to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.errors import BackendError, InputError
from backends.request_texts import read_texts
from backends.text_embedding.tokens import TextTokenizer
from backends.text_graph import open_text_graph, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from backends.classification.classifier import ClassificationRequest
    from backends.classification.zero_shot import Candidates
    from backends.text_graph import TextGraphArtefact


class ClassifiedTokenizer(TextTokenizer):
    """Encodes texts and pairs; what is too long is cut as the pipelines of transformers do."""

    def hypotheses(self, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """Encode pairs of which only the first text may be cut.

        Raises:
            InputError: a second text that leaves the first one no room.
        """
        artefact, tokenizer = self._artefact, self._tokenizer
        longest, side = artefact.max_seq_length, artefact.truncation_side
        tokenizer.no_truncation()
        seconds = tokenizer.encode_batch([second for _, second in pairs], add_special_tokens=False)
        room = longest - tokenizer.num_special_tokens_to_add(True) - 1
        if (most := max(map(len, seconds), default=0)) > room:
            raise InputError(
                f"A candidate label with its template has {most} tokens; this model has room for "
                f"{room}."
            )
        try:
            tokenizer.enable_truncation(longest, strategy="only_first", direction=side)
            return list(tokenizer.encode_batch_fast(list(pairs)))
        finally:
            tokenizer.enable_truncation(longest, direction=side)


class TextLogits:
    """A graph over tokens that gives logits, and its tokenizer."""

    input_name = "text_input"
    input_names = ("text_input", "text_pair_input")

    def __init__(self, graph: TextGraphArtefact, *, device_id: int) -> None:
        """Open tokenizer and graph; raises ArtefactError, EngineError."""
        self._tokenizer = ClassifiedTokenizer(graph)
        self._engine = open_text_graph(graph, device_id=device_id)

    def read(self, inputs: Mapping[str, NDArray[Any]], candidates: Candidates | None) -> list[Any]:
        """The encodings of a request's texts.

        Raises:
            InputError: as `read_texts`; another number of second texts than of first ones; second
                texts beside candidates; as `ClassifiedTokenizer.hypotheses`.
        """
        texts = read_texts("text_input", inputs["text_input"])
        second = inputs.get("text_pair_input")
        if candidates is not None:
            if second is not None:
                raise InputError("Give candidate_labels or text_pair_input, not both.")
            pairs = [pair for text in texts for pair in candidates.pairs(text)]
            return self._tokenizer.hypotheses(pairs)
        if second is None:
            return self._tokenizer.encode(texts)
        others = read_texts("text_pair_input", second)
        if len(others) != len(texts):
            raise InputError(
                f"text_input has {len(texts)} texts and text_pair_input {len(others)}; each text "
                "needs its own second one."
            )
        return self._tokenizer.encode(list(zip(texts, others, strict=True)))

    def run(
        self, requests: Sequence[ClassificationRequest], abandoned: Callable[[int], bool]
    ) -> list[list[Any]]:
        """Per request, per encoding: FP32 [labels], or what went wrong."""
        owners = [index for index, request in enumerate(requests) for _ in request.items]
        encodings = [item for request in requests for item in request.items]
        rows = run_rows(self._engine, self._tokenizer, encodings, owners, abandoned)
        mine: list[list[Any]] = [[] for _ in requests]
        for owner, row in zip(owners, rows, strict=True):
            mine[owner].append(row if isinstance(row, BackendError) else row["logits"])
        return mine
