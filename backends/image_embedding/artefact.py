"""What the image_embedding backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.engines import Engine, open_engine
from backends.errors import ArtefactError
from backends.manifest import MANIFEST, read_manifest, reading
from backends.preprocessing import Preprocessing, read_preprocessing
from backends.text_graph import TextGraphArtefact, text_graph_artefact

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class ImageGraph:
    """The graph from pixel values to vectors.

    Attributes:
        model_file: full path; it exists.
        tokens: what a run of one picture costs, in text tokens (patches of a transformer).
    """

    engine: str
    precision: str
    model_file: Path
    input_name: str
    output_name: str
    tokens: int
    preprocessing: Preprocessing

    def open(self, *, device_id: int = 0) -> Engine:
        """Open the graph with its engine.

        Raises:
            EngineError: it cannot be opened.
        """
        return open_engine(
            self.engine,
            self.model_file,
            input_names=[self.input_name],
            output_names=[self.output_name],
            precision=self.precision,
            device_id=device_id,
        )


@dataclass(frozen=True)
class ImageEmbeddingArtefact:
    """A converted image model.

    Attributes:
        normalized: the graphs themselves end in an L2 normalisation.
        text: the graph of texts, whose vectors lie in the same space; None where there is none.
    """

    model_id: str
    dimension: int
    normalized: bool
    image: ImageGraph
    text: TextGraphArtefact | None


def read_artefact(folder: Path) -> ImageEmbeddingArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: see `read_manifest`; or a value that this backend does not know.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["image_embedding"]
        text = section["text"]
        artefact = ImageEmbeddingArtefact(
            model_id=str(manifest["model_id"]),
            dimension=int(section["dimension"]),
            normalized=bool(section["normalized"]),
            image=image_graph(folder, manifest, section["image"]),
            # Each graph may have an engine of its own.
            text=None if text is None else text_graph_artefact(folder, {**manifest, **text}, text),
        )
    _check_values(artefact)
    return artefact


def image_graph(
    folder: Path, manifest: Mapping[str, Any], section: Mapping[str, Any]
) -> ImageGraph:
    """Of a backend's section on pictures; to be called within `manifest.reading`."""
    return ImageGraph(
        engine=str(section.get("engine", manifest["engine"])),
        precision=str(section.get("precision", manifest["precision"])),
        model_file=folder / section["model_file"],
        input_name=str(section["input_name"]),
        output_name=str(section["output_name"]),
        tokens=int(section["tokens"]),
        preprocessing=read_preprocessing(section["preprocessing"]),
    )


def _check_values(artefact: ImageEmbeddingArtefact) -> None:
    outputs = (artefact.image.output_name,) if artefact.text is None else artefact.text.output_names
    problems = {
        "dimension and tokens must be above 0": min(artefact.dimension, artefact.image.tokens) < 1,
        "the graph of texts must have one output": len(outputs) != 1,
    }
    broken = [text for text, is_broken in problems.items() if is_broken]
    if broken:
        raise ArtefactError(f"{MANIFEST} of {artefact.model_id}: {'; '.join(broken)}.")
