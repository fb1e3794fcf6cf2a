"""What the backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.errors import ArtefactError
from backends.manifest import MANIFEST, read_manifest, reading

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = {"causal": "AutoModelForCausalLM", "encoder_decoder": "AutoModelForSeq2SeqLM"}


@dataclass(frozen=True)
class TextGenerationArtefact:
    """A packaged model that generates text.

    Attributes:
        folder: the model's own files.
        kind: causal or encoder_decoder.
        context_length: tokens that prompt and answer share; an encoder-decoder's have each
            so many.
        has_chat_template: conversations can be put into a prompt.
        together: requests may be padded and computed side by side.
        kv_bytes_per_token: what a token takes in memory while its request runs.
        kv_bytes: what all running requests' tokens may take.
        safe: the weights are safetensors.
    """

    model_id: str
    folder: Path
    kind: str
    precision: str
    context_length: int
    has_chat_template: bool
    together: bool
    kv_bytes_per_token: int
    kv_bytes: int
    safe: bool


def read_artefact(folder: Path) -> TextGenerationArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: no manifest, not one of ours, or a file it names is missing or has
            another size.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["text_generation"]
        artefact = TextGenerationArtefact(
            model_id=str(manifest["model_id"]),
            folder=folder / section["model_folder"],
            kind=str(section["kind"]),
            precision=str(manifest["precision"]),
            context_length=int(section["context_length"]),
            has_chat_template=bool(section["chat_template"]),
            together=bool(section["together"]),
            kv_bytes_per_token=int(section["kv_bytes_per_token"]),
            kv_bytes=int(section["kv_bytes"]),
            safe=bool(section["safetensors"]),
        )
    if artefact.kind not in CLASSES or artefact.context_length < 1:
        raise ArtefactError(
            f"{MANIFEST} of {artefact.model_id}: kind {artefact.kind!r} with a context of "
            f"{artefact.context_length} tokens is nothing that this backend can serve."
        )
    return artefact
