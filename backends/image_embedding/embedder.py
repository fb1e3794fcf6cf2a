"""Embedding the pictures and texts of one execution together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.errors import BackendError, EngineError, InputError, RequestAbandoned
from backends.image_embedding.artefact import ImageEmbeddingArtefact, read_artefact
from backends.images import decode_image
from backends.lanes import cost_for, in_lanes
from backends.machine import usable_cores
from backends.text_embedding.batching import sub_batches
from backends.text_embedding.embedder import normalized
from backends.text_embedding.tokens import TextTokenizer
from backends.text_graph import open_text_graph, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.engines import Engine
    from backends.image_embedding.artefact import ImageGraph
    from backends.image_embedding.requests import EmbeddingRequest
    from backends.text_graph import TextGraphArtefact

    Vectors = NDArray[np.float32]
    Row = Vectors | BackendError
    Abandoned = Callable[[int], bool]

# Pillow decodes and resizes without Python's lock. Each of these threads may hold a picture of 64
# megapixels, half a gigabyte.
_MOST_THREADS = 4


class Embedder:
    """A loaded model: its towers."""

    def __init__(
        self, artefact: ImageEmbeddingArtefact, pictures: PictureTower, texts: TextTower | None
    ) -> None:
        self.artefact = artefact
        self._pictures, self._texts = pictures, texts

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Embedder:
        """Load the artefact in a version folder.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        pictures = PictureTower(artefact.image, artefact.image.open(device_id=device_id))
        texts = None if artefact.text is None else TextTower(artefact.text, device_id=device_id)
        return cls(artefact, pictures, texts)

    def embed(
        self, requests: Sequence[EmbeddingRequest], abandoned: Abandoned = lambda _: False
    ) -> list[dict[str, Vectors] | BackendError]:
        """Embed everything in all requests: all pictures together, and all texts.

        Args:
            abandoned: asked with a request's index before each sub-batch that holds something of
                it; from then on it is left out.

        Returns:
            Per request, in order, `embedding`, FP32 `[number of items, D]`, or what went wrong:
            InputError for a picture that cannot be decoded, EngineError, RequestAbandoned.
        """
        rows: list[list[Row]] = [[] for _ in requests]
        pictures = [(i, n, p) for i, r in enumerate(requests) for n, p in enumerate(r.pictures)]
        for (owner, _, _), row in zip(
            pictures, self._pictures.run(pictures, abandoned), strict=True
        ):
            rows[owner].append(row)
        texts = [(i, text) for i, request in enumerate(requests) for text in request.texts]
        if texts and self._texts is not None:
            for (owner, _), row in zip(texts, self._texts.run(texts, abandoned), strict=True):
                rows[owner].append(row)
        return [
            self._answer(found, normalize=request.normalize)
            for request, found in zip(requests, rows, strict=True)
        ]

    def _answer(self, rows: list[Row], *, normalize: bool) -> dict[str, Vectors] | BackendError:
        found: list[Vectors] = []
        for row in rows:
            if isinstance(row, BackendError):
                return row
            found.append(row)
        shape = (len(found), self.artefact.dimension)
        vectors = np.stack(found) if found else np.zeros(shape, np.float32)
        if vectors.shape != shape:
            return EngineError(f"The graph returned the shape {vectors.shape} instead of {shape}.")
        if not np.isfinite(vectors).all():
            return EngineError("The model returned values that are not finite.")
        return {"embedding": normalized(vectors) if normalize else vectors}


class PictureTower:
    """Image files to vectors."""

    def __init__(self, graph: ImageGraph, engine: Engine) -> None:
        self._graph, self._engine = graph, engine
        threads = min(_MOST_THREADS, usable_cores())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def run(self, pictures: Sequence[tuple[int, int, bytes]], abandoned: Abandoned) -> list[Row]:
        """Run pictures in sub-batches; one that cannot be decoded fails its request alone.

        Args:
            pictures: of each the request's index, its own index there, and the file.

        Returns:
            Per picture its vector, `[D]`, or what went wrong.
        """
        rows: list[Row] = [EngineError("It did not run.")] * len(pictures)
        failed: dict[int, BackendError] = {}
        cost = cost_for(self._engine.cost, len(pictures), len({owner for owner, _, _ in pictures}))
        batches = sub_batches([self._graph.tokens] * len(pictures), cost)

        def wanted() -> Iterator[list[int]]:
            for batch in batches:
                for owner in {pictures[place][0] for place in batch}:
                    if abandoned(owner):
                        failed[owner] = RequestAbandoned("The request was cancelled.")
                # A request that has failed gets no answer: its other pictures need no work.
                yield [place for place in batch if pictures[place][0] not in failed]

        def run(places: list[int]) -> None:
            pixels = self._pool.map(self._pixels, [pictures[place][1:] for place in places])
            good: dict[int, NDArray[np.float32]] = {}
            for place, values in zip(places, pixels, strict=True):
                if isinstance(values, InputError):
                    failed.setdefault(pictures[place][0], values)
                else:
                    good[place] = values
            for place, row in zip(good, self._vectors(list(good.values())), strict=True):
                rows[place] = row

        in_lanes(wanted(), run, min(cost.lanes, len(batches)))
        return [failed.get(owner, row) for (owner, _, _), row in zip(pictures, rows, strict=True)]

    def _pixels(self, picture: tuple[int, bytes]) -> NDArray[np.float32] | InputError:
        index, encoded = picture
        try:
            return self._graph.preprocessing.pixel_values(decode_image(encoded, index), index)
        except InputError as error:
            return error

    def _vectors(self, pixels: Sequence[NDArray[np.float32]]) -> list[Row]:
        if not pixels:
            return []
        try:
            outputs = self._engine.run({self._graph.input_name: np.stack(pixels)})
        except EngineError as failure:
            return [failure] * len(pixels)
        return list(outputs[self._graph.output_name])


class TextTower:
    """Texts to vectors of the same space."""

    def __init__(self, graph: TextGraphArtefact, *, device_id: int = 0) -> None:
        """Open tokenizer and graph.

        Raises:
            ArtefactError, EngineError: one of them cannot be opened.
        """
        self._graph = graph
        self._tokenizer = TextTokenizer(graph)
        self._engine = open_text_graph(graph, device_id=device_id)

    def run(self, texts: Sequence[tuple[int, str]], abandoned: Abandoned) -> list[Row]:
        """Run texts, each with its request's index: per text its vector, or what went wrong."""
        encodings = self._tokenizer.encode([text for _, text in texts])
        owners = [owner for owner, _ in texts]
        rows = run_rows(self._engine, self._tokenizer, encodings, owners, abandoned)
        return [row if isinstance(row, BackendError) else self._vector(row) for row in rows]

    def _vector(self, outputs: dict[str, NDArray[Any]]) -> Vectors:
        return outputs[self._graph.output_names[0]]
