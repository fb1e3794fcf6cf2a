"""Embedding the requests of one execution together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backends.engines import Engine, open_engine
from backends.errors import BackendError, EngineError, RequestAbandoned
from backends.lanes import cost_for, in_lanes
from backends.text_embedding.artefact import TextEmbeddingArtefact, read_artefact
from backends.text_embedding.batching import Shapes, sub_batches
from backends.text_embedding.tokens import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backends.text_embedding.requests import EmbeddingRequest

Embeddings = NDArray[np.float32]


class Embedder:
    """A loaded model: an artefact with its tokenizer and its engine."""

    def __init__(
        self, artefact: TextEmbeddingArtefact, tokenizer: TextTokenizer, engine: Engine
    ) -> None:
        self.artefact = artefact
        self.engine = engine
        self._tokenizer = tokenizer
        self._shapes = Shapes()

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Embedder:
        """Load the artefact in a version folder.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        tokenizer = TextTokenizer(artefact)
        engine = open_engine(
            artefact.engine,
            artefact.model_file,
            input_names=artefact.input_names,
            output_names=[artefact.output_name],
            precision=artefact.precision,
            device_id=device_id,
        )
        return cls(artefact, tokenizer, engine)

    def embed(
        self,
        requests: Sequence[EmbeddingRequest],
        abandoned: Callable[[int], bool] = lambda _: False,
    ) -> list[Embeddings | BackendError]:
        """Embed all texts of all requests together.

        Args:
            requests: any number, each with any number of texts.
            abandoned: asked with a request's index before each sub-batch that holds texts of it;
                from then on its texts are left out.

        Returns:
            Per request, in order, FP32 `[number of texts, D]`, or what went wrong: EngineError
            when a sub-batch with a text of it failed, RequestAbandoned.
        """
        owners = [index for index, request in enumerate(requests) for _ in request.texts]
        encodings = self._tokenizer.encode([text for request in requests for text in request.texts])
        rows = np.zeros((len(owners), self.artefact.dimension), dtype=np.float32)
        errors: dict[int, BackendError] = {}
        cost = cost_for(self.engine.cost, len(owners), len(requests))
        batches = sub_batches([len(item) for item in encodings], cost)

        def wanted() -> Iterator[tuple[list[int], int]]:
            for batch in batches:
                for owner in {owners[i] for i in batch}:
                    if abandoned(owner):
                        errors[owner] = RequestAbandoned("The request was cancelled.")
                left = [i for i in batch if owners[i] not in errors]
                if left:
                    yield left, self._padded_length([encodings[i] for i in left])

        def run(job: tuple[list[int], int]) -> None:
            places, least = job
            rows[places], failed = self._run([encodings[i] for i in places], least)
            errors.update({owners[places[row]]: error for row, error in failed.items()})

        in_lanes(wanted(), run, min(cost.lanes, len(batches)))
        return [
            errors.get(index, embeddings)
            for index, embeddings in enumerate(_scatter(rows, requests))
        ]

    def _padded_length(self, encodings: Sequence[Any]) -> int:
        longest = max(1, *(len(item) for item in encodings))
        return self._shapes.length(len(encodings), longest, self.engine.cost)

    def _run(
        self, encodings: Sequence[Any], least: int
    ) -> tuple[Embeddings, dict[int, EngineError]]:
        """Vectors of one sub-batch, and the errors of those rows that have none."""
        try:
            vectors = self._vectors(encodings, least)
        except EngineError as failure:
            shape = (len(encodings), self.artefact.dimension)
            return np.zeros(shape, np.float32), dict.fromkeys(range(len(encodings)), failure)
        endless = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
        error = EngineError("The model returned values that are not finite.")
        return vectors, dict.fromkeys(endless, error)

    def _vectors(self, encodings: Sequence[Any], least: int) -> Embeddings:
        output = self.engine.run(self._tokenizer.arrays(encodings, least))[
            self.artefact.output_name
        ]
        shape = (len(encodings), self.artefact.dimension)
        if output.shape != shape:
            raise EngineError(f"The graph returned the shape {output.shape} instead of {shape}.")
        return output


def _scatter(rows: Embeddings, requests: Sequence[EmbeddingRequest]) -> list[Embeddings]:
    """Cut the rows of all texts into the requests they came from."""
    ends = np.cumsum([len(request.texts) for request in requests])
    parts = [
        rows[end - len(request.texts) : end] for request, end in zip(requests, ends, strict=True)
    ]
    return [
        normalized(part) if request.normalize else part
        for request, part in zip(requests, parts, strict=True)
    ]


def normalized(embeddings: Embeddings) -> Embeddings:
    """Rows of `[n, D]` scaled to length 1, as `torch.nn.functional.normalize` does (eps 1e-12)."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)
