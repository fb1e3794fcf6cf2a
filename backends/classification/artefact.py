"""What the classification backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backends.errors import ArtefactError
from backends.image_embedding.artefact import ImageGraph, image_graph
from backends.manifest import read_manifest, reading
from backends.text_graph import TextGraphArtefact, text_graph_artefact

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ClassificationArtefact:
    """A converted classifier of texts or of images.

    Attributes:
        text, image: the graph; one of them.
        labels: in the order of the logits.
        activation: what makes scores of logits.
    """

    model_id: str
    text: TextGraphArtefact | None
    image: ImageGraph | None
    labels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid", "none"]


def read_artefact(folder: Path) -> ClassificationArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: see `read_manifest`; or a value that this backend does not know.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["classification"]
        pictures = section["takes"] == "image"
        artefact = ClassificationArtefact(
            model_id=str(manifest["model_id"]),
            text=None if pictures else text_graph_artefact(folder, manifest, section),
            image=image_graph(folder, manifest, section["image"]) if pictures else None,
            labels=tuple(str(label) for label in section["labels"]),
            activation=section["activation"],
        )
    if artefact.activation not in ("softmax", "sigmoid", "none") or not artefact.labels:
        raise ArtefactError(f"The manifest of {artefact.model_id} names no labels to score.")
    return artefact
