"""From texts or images to scored labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.classification.artefact import ClassificationArtefact, read_artefact
from backends.errors import BackendError, EngineError, InputError
from backends.image_embedding.embedder import PictureTower
from backends.request_parameters import whole_number
from backends.request_texts import read_bytes, read_texts
from backends.text_embedding.tokens import TextTokenizer
from backends.text_graph import open_text_graph, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.image_embedding.artefact import ImageGraph
    from backends.text_graph import TextGraphArtefact

DEFAULT_TOP_K = 5
_ANY = 1_000_000


@dataclass(frozen=True)
class ClassificationRequest:
    """Texts, or images as files, to classify; the `top_k` best labels of each are wanted."""

    items: tuple[Any, ...]
    top_k: int


@dataclass(frozen=True)
class Labelled:
    """Labels, objects of bytes, and their scores, FP32, both [texts, k], best first."""

    labels: NDArray[Any]
    scores: NDArray[np.float32]


class Classifier:
    """A loaded model: an artefact and what makes logits of a request's items."""

    def __init__(self, artefact: ClassificationArtefact, logits: TextLogits | ImageLogits) -> None:
        self.artefact = artefact
        self._logits = logits
        self._labels = np.array([label.encode() for label in artefact.labels], dtype=np.object_)

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Classifier:
        """Load the artefact in a version folder.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        if artefact.text is not None:
            return cls(artefact, TextLogits(artefact.text, device_id=device_id))
        assert artefact.image is not None
        return cls(artefact, ImageLogits(artefact.image, device_id=device_id))

    def read(
        self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> ClassificationRequest:
        """Check a request; `top_k` beyond the number of labels means all of them.

        Args:
            inputs: the arrays that the request has, `[n, 1]` or `[n]`.

        Raises:
            InputError: not the input that this model takes; as `read_texts`; a `top_k` that is
                no whole number of at least 1.
        """
        top_k = whole_number(parameters, "top_k", DEFAULT_TOP_K, low=1, high=_ANY)
        assert top_k is not None
        name = self._logits.input_name
        if set(inputs) != {name}:
            raise InputError(f"Model {self.artefact.model_id} takes {name}, and nothing else.")
        items = self._logits.read(inputs[name])
        return ClassificationRequest(tuple(items), min(top_k, len(self._labels)))

    def classify(
        self,
        requests: Sequence[ClassificationRequest],
        abandoned: Callable[[int], bool] = lambda _: False,
    ) -> list[Labelled | BackendError]:
        """Classify all items of all requests together.

        Args:
            abandoned: asked with a request's index; from then on its items are left out.

        Returns:
            Per request, in order, its labels or what went wrong.
        """
        rows = self._logits.run(requests, abandoned)
        return [
            self._labelled(found, request.top_k)
            for found, request in zip(rows, requests, strict=True)
        ]

    def _labelled(self, rows: list[Any], top_k: int) -> Labelled | BackendError:
        failure = next((row for row in rows if isinstance(row, BackendError)), None)
        if failure is not None:
            return failure
        count = len(self._labels)
        logits = np.stack(rows) if rows else np.zeros((0, count))
        if logits.shape != (len(rows), count):
            return EngineError(
                f"The graph returned the shape {logits.shape} for {len(rows)} items."
            )
        if not np.isfinite(logits).all():
            return EngineError("The model returned values that are not finite.")
        scores = activated(logits, self.artefact.activation)
        # stable: labels of one score stay in the model's order, as transformers sorts them
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return Labelled(self._labels[order], np.take_along_axis(scores, order, axis=1))


class TextLogits:
    """Texts to logits."""

    input_name = "text_input"

    def __init__(self, graph: TextGraphArtefact, *, device_id: int) -> None:
        """Open tokenizer and graph; raises ArtefactError, EngineError."""
        self._tokenizer = TextTokenizer(graph)
        self._engine = open_text_graph(graph, device_id=device_id)

    def read(self, items: NDArray[Any]) -> list[str]:
        return read_texts(self.input_name, items)

    def run(
        self, requests: Sequence[ClassificationRequest], abandoned: Callable[[int], bool]
    ) -> list[list[Any]]:
        """Per request, per text: FP32 [labels], or what went wrong."""
        owners = [index for index, request in enumerate(requests) for _ in request.items]
        encodings = self._tokenizer.encode([text for request in requests for text in request.items])
        rows = run_rows(self._engine, self._tokenizer, encodings, owners, abandoned)
        mine: list[list[Any]] = [[] for _ in requests]
        for owner, row in zip(owners, rows, strict=True):
            mine[owner].append(row if isinstance(row, BackendError) else row["logits"])
        return mine


class ImageLogits:
    """Image files to logits."""

    input_name = "image_input"

    def __init__(self, graph: ImageGraph, *, device_id: int) -> None:
        """Open the graph; raises EngineError."""
        self._tower = PictureTower(graph, graph.open(device_id=device_id))

    def read(self, items: NDArray[Any]) -> list[bytes]:
        return read_bytes(self.input_name, items)

    def run(
        self, requests: Sequence[ClassificationRequest], abandoned: Callable[[int], bool]
    ) -> list[list[Any]]:
        """Per request, per image: FP32 [labels], or what went wrong."""
        pictures = [(i, n, file) for i, r in enumerate(requests) for n, file in enumerate(r.items)]
        mine: list[list[Any]] = [[] for _ in requests]
        for (owner, _, _), row in zip(pictures, self._tower.run(pictures, abandoned), strict=True):
            mine[owner].append(row)
        return mine


def activated(logits: NDArray[Any], activation: str) -> NDArray[np.float32]:
    """Scores of logits `[n, labels]`: softmax over the labels, sigmoid of each, or as they are."""
    values = logits.astype(np.float64)
    if activation == "softmax":
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        values = shifted / shifted.sum(axis=1, keepdims=True)
    elif activation == "sigmoid":
        values = 0.5 * (1.0 + np.tanh(0.5 * values))  # no overflow at either end
    return values.astype(np.float32)
