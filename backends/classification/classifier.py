"""From texts or images to scored labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.classification.artefact import ClassificationArtefact, read_artefact
from backends.classification.texts import TextLogits
from backends.classification.zero_shot import entailment_place, read_candidates, softmax
from backends.errors import BackendError, EngineError, InputError
from backends.image_embedding.embedder import PictureTower
from backends.request_parameters import whole_number
from backends.request_texts import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.classification.zero_shot import Candidates
    from backends.image_embedding.artefact import ImageGraph

DEFAULT_TOP_K = 5
_ANY = 1_000_000


@dataclass(frozen=True)
class ClassificationRequest:
    """What is to be classified; the `top_k` best labels of each item are wanted.

    Attributes:
        items: encoded texts or pairs of texts, or images as files; of a request with candidates a
            pair for each of an item's candidates, one item after the other.
        candidates: labels of the request's own in the place of the model's.
    """

    items: tuple[Any, ...]
    top_k: int
    candidates: Candidates | None = None


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
        self._labels = _objects(artefact.labels)
        self._entailment = entailment_place(artefact.labels)

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
            parameters: `top_k`; of a model of texts those of `read_candidates`.

        Raises:
            InputError: not the inputs that this model takes; as `read_texts`; a parameter beyond
                its limits; candidates for a model that does not say what entailment is.
        """
        logits = self._logits
        candidates = read_candidates(parameters)
        if candidates is not None and (self._entailment is None or "text_input" not in inputs):
            raise InputError(
                "candidate_labels need a model of natural language inference, one of whose labels "
                f"is entailment; those of {self.artefact.model_id} are fixed."
            )
        known = len(self._labels) if candidates is None else len(candidates.labels)
        default = DEFAULT_TOP_K if candidates is None else known
        top_k = whole_number(parameters, "top_k", default, low=1, high=_ANY)
        assert top_k is not None
        if logits.input_name not in inputs or not set(inputs) <= set(logits.input_names):
            takes = " and ".join(logits.input_names)
            raise InputError(f"Model {self.artefact.model_id} takes {takes}, and nothing else.")
        items = logits.read(inputs, candidates)
        return ClassificationRequest(tuple(items), min(top_k, known), candidates)

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
            self._labelled(found, request) for found, request in zip(rows, requests, strict=True)
        ]

    def _labelled(self, rows: list[Any], request: ClassificationRequest) -> Labelled | BackendError:
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
        labels, candidates = self._labels, request.candidates
        if candidates is None:
            scores = activated(logits, self.artefact.activation)
        else:
            assert self._entailment is not None
            labels = _objects(candidates.labels)
            judged = candidates.scores(logits.astype(np.float64), self._entailment)
            scores = judged.astype(np.float32)
        # stable: labels of one score stay in the model's order, as transformers sorts them
        order = np.argsort(-scores, axis=1, kind="stable")[:, : request.top_k]
        return Labelled(labels[order], np.take_along_axis(scores, order, axis=1))


class ImageLogits:
    """Image files to logits."""

    input_name = "image_input"
    input_names = ("image_input",)

    def __init__(self, graph: ImageGraph, *, device_id: int) -> None:
        """Open the graph; raises EngineError."""
        self._tower = PictureTower(graph, graph.open(device_id=device_id))

    def read(self, inputs: Mapping[str, NDArray[Any]], _: Candidates | None) -> list[bytes]:
        return read_bytes(self.input_name, inputs[self.input_name])

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
        values = softmax(values)
    elif activation == "sigmoid":
        values = 0.5 * (1.0 + np.tanh(0.5 * values))  # no overflow at either end
    return values.astype(np.float32)


def _objects(labels: Sequence[str]) -> NDArray[Any]:
    return np.array([label.encode() for label in labels], dtype=np.object_)
