"""What the diffusion backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backends.errors import ArtefactError
from backends.manifest import read_manifest, reading

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DiffusionArtefact:
    """A packaged diffusers pipeline.

    Attributes:
        folder: with model_index.json; exists.
        pipeline: diffusers' class.
        variant: which of the weights to load, `fp16`; None for the plain ones.
        default_size, smallest_size: width and height in pixels.
        takes_image: img2img; else txt2img.
    """

    model_id: str
    folder: Path
    pipeline: str
    precision: Literal["fp32", "bf16"]
    variant: str | None
    default_size: int
    smallest_size: int
    takes_image: bool


def read_artefact(folder: Path) -> DiffusionArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: see `read_manifest`; or a precision that this backend does not know.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["diffusion"]
        artefact = DiffusionArtefact(
            model_id=str(manifest["model_id"]),
            folder=folder / section["model_folder"],
            pipeline=str(section["pipeline"]),
            precision=manifest["precision"],
            variant=section["variant"],
            default_size=int(section["default_size"]),
            smallest_size=int(section["smallest_size"]),
            takes_image=manifest["task_type"] == "img2img",
        )
    if artefact.precision not in ("fp32", "bf16"):
        raise ArtefactError(f"{artefact.model_id} has the unknown precision {artefact.precision}.")
    return artefact
