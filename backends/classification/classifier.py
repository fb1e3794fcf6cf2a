"""From texts to scored labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.classification.artefact import ClassificationArtefact, read_artefact
from backends.errors import BackendError, EngineError
from backends.request_parameters import whole_number
from backends.request_texts import read_texts
from backends.text_embedding.tokens import TextTokenizer
from backends.text_graph import open_text_graph, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.engines import Engine

DEFAULT_TOP_K = 5
_ANY = 1_000_000


@dataclass(frozen=True)
class ClassificationRequest:
    """Texts to classify; the `top_k` best labels of each are wanted."""

    texts: tuple[str, ...]
    top_k: int


@dataclass(frozen=True)
class Labelled:
    """Labels, objects of bytes, and their scores, FP32, both [texts, k], best first."""

    labels: NDArray[Any]
    scores: NDArray[np.float32]


class Classifier:
    """A loaded model: an artefact with its tokenizer and its engine."""

    def __init__(
        self, artefact: ClassificationArtefact, tokenizer: TextTokenizer, engine: Engine
    ) -> None:
        self.artefact = artefact
        self._tokenizer = tokenizer
        self._engine = engine
        self._labels = np.array([label.encode() for label in artefact.labels], dtype=np.object_)

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Classifier:
        """Load the artefact in a version folder.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        tokenizer = TextTokenizer(artefact.text)
        return cls(artefact, tokenizer, open_text_graph(artefact.text, device_id=device_id))

    def read(
        self, text_input: NDArray[Any], parameters: Mapping[str, Any]
    ) -> ClassificationRequest:
        """Check a request; `top_k` beyond the number of labels means all of them.

        Raises:
            InputError: as `read_texts`; a `top_k` that is no whole number of at least 1.
        """
        top_k = whole_number(parameters, "top_k", DEFAULT_TOP_K, low=1, high=_ANY)
        assert top_k is not None
        texts = read_texts("text_input", text_input)
        return ClassificationRequest(tuple(texts), min(top_k, len(self._labels)))

    def classify(
        self,
        requests: Sequence[ClassificationRequest],
        abandoned: Callable[[int], bool] = lambda _: False,
    ) -> list[Labelled | BackendError]:
        """Classify all texts of all requests together.

        Args:
            abandoned: asked with a request's index; from then on its texts are left out.

        Returns:
            Per request, in order, its labels or what went wrong.
        """
        owners = [index for index, request in enumerate(requests) for _ in request.texts]
        encodings = self._tokenizer.encode([text for request in requests for text in request.texts])
        rows = run_rows(self._engine, self._tokenizer, encodings, owners, abandoned)
        mine: list[list[Any]] = [[] for _ in requests]
        for owner, row in zip(owners, rows, strict=True):
            mine[owner].append(row)
        return [
            self._labelled(found, request.top_k)
            for found, request in zip(mine, requests, strict=True)
        ]

    def _labelled(self, rows: list[Any], top_k: int) -> Labelled | BackendError:
        failure = next((row for row in rows if isinstance(row, BackendError)), None)
        if failure is not None:
            return failure
        logits = (
            np.stack([row["logits"] for row in rows]) if rows else np.zeros((0, len(self._labels)))
        )
        if logits.shape != (len(rows), len(self._labels)):
            return EngineError(
                f"The graph returned the shape {logits.shape} for {len(rows)} texts."
            )
        if not np.isfinite(logits).all():
            return EngineError("The model returned values that are not finite.")
        scores = activated(logits, self.artefact.activation)
        # stable: labels of one score stay in the model's order, as transformers sorts them
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return Labelled(self._labels[order], np.take_along_axis(scores, order, axis=1))


def activated(logits: NDArray[Any], activation: str) -> NDArray[np.float32]:
    """Scores of logits `[n, labels]`: softmax over the labels, sigmoid of each, or as they are."""
    values = logits.astype(np.float64)
    if activation == "softmax":
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        values = shifted / shifted.sum(axis=1, keepdims=True)
    elif activation == "sigmoid":
        values = 0.5 * (1.0 + np.tanh(0.5 * values))  # no overflow at either end
    return values.astype(np.float32)
