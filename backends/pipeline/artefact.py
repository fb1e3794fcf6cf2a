"""What the pipeline backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backends.errors import ArtefactError
from backends.manifest import read_manifest, reading

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class PipelineArtefact:
    """A packaged transformers model; `task_type` says which pipeline it runs in."""

    model_id: str
    task_type: str
    folder: Path
    precision: Literal["fp32", "bf16"]
    safe: bool


def read_artefact(folder: Path) -> PipelineArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: see `read_manifest`; or a precision that this backend does not know.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["pipeline"]
        artefact = PipelineArtefact(
            model_id=str(manifest["model_id"]),
            task_type=str(manifest["task_type"]),
            folder=folder / section["model_folder"],
            precision=manifest["precision"],
            safe=bool(section["safetensors"]),
        )
    if artefact.precision not in ("fp32", "bf16"):
        raise ArtefactError(f"{artefact.model_id} has the unknown precision {artefact.precision}.")
    return artefact
