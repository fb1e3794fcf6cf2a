"""What the backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.errors import ArtefactError
from backends.manifest import MANIFEST, read_manifest, reading

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("caption", "encoder_decoder", "chat")


@dataclass(frozen=True)
class ImageToTextArtefact:
    """A packaged model that makes text of an image.

    Attributes:
        folder: the model's own files.
        kind: caption, encoder_decoder or chat.
        context_length: tokens that prompt and answer share.
        safe: the weights are safetensors.
    """

    model_id: str
    folder: Path
    kind: str
    precision: str
    context_length: int
    safe: bool


def read_artefact(folder: Path) -> ImageToTextArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: no manifest, not one of ours, or a file it names is missing or has
            another size.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["image_to_text"]
        artefact = ImageToTextArtefact(
            model_id=str(manifest["model_id"]),
            folder=folder / section["model_folder"],
            kind=str(section["kind"]),
            precision=str(manifest["precision"]),
            context_length=int(section["context_length"]),
            safe=bool(section["safetensors"]),
        )
    if artefact.kind not in KINDS:
        raise ArtefactError(
            f"{MANIFEST} of {artefact.model_id}: kind {artefact.kind!r} is unknown to this backend."
        )
    return artefact
