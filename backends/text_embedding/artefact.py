"""What the backend reads of an artefact's manifest (`manifest.json` of a version folder)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from backends.errors import ArtefactError
from backends.manifest import MANIFEST, read_manifest, reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The graph inputs this backend knows how to fill.
GRAPH_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class TextEmbeddingArtefact:
    """A converted text-embedding model.

    Attributes:
        model_file, tokenizer_file: full paths; they exist.
        max_seq_length: tokens of a text beyond which it is cut, special tokens included.
        normalized: the graph itself ends in an L2 normalisation.
        prompts: text put before an input, by name.
        default_prompt_name: the prompt used when a request names none.
    """

    model_id: str
    engine: str
    precision: str
    model_file: Path
    tokenizer_file: Path
    input_names: tuple[str, ...]
    output_name: str
    dimension: int
    max_seq_length: int
    do_lower_case: bool
    pad_token_id: int
    pad_token_type_id: int
    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]
    normalized: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None


def read_artefact(folder: Path) -> TextEmbeddingArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: no manifest, not one of ours, or a file it names is missing or has
            another size.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        artefact = _from_manifest(folder, manifest)
    _check_values(artefact)
    return artefact


def _from_manifest(folder: Path, manifest: Mapping[str, Any]) -> TextEmbeddingArtefact:
    section = manifest["text_embedding"]
    return TextEmbeddingArtefact(
        model_id=str(manifest["model_id"]),
        engine=str(manifest["engine"]),
        precision=str(manifest.get("precision", "fp32")),
        model_file=folder / section["model_file"],
        tokenizer_file=folder / section["tokenizer_file"],
        input_names=tuple(section["input_names"]),
        output_name=str(section["output_name"]),
        dimension=int(section["dimension"]),
        max_seq_length=int(section["max_seq_length"]),
        do_lower_case=bool(section["do_lower_case"]),
        pad_token_id=int(section["pad_token_id"]),
        pad_token_type_id=int(section["pad_token_type_id"]),
        padding_side=section["padding_side"],
        truncation_side=section.get("truncation_side", "right"),
        normalized=bool(section["normalized"]),
        prompts=dict(section["prompts"]),
        default_prompt_name=section["default_prompt_name"],
    )


def _check_values(artefact: TextEmbeddingArtefact) -> None:
    unknown = [name for name in artefact.input_names if name not in GRAPH_INPUTS]
    problems = {
        f"graph inputs {', '.join(unknown)} are unknown to this backend": bool(unknown),
        "input_ids is not among the graph's inputs": "input_ids" not in artefact.input_names,
        "padding_side and truncation_side must be left or right": not {
            artefact.padding_side,
            artefact.truncation_side,
        }
        <= {"left", "right"},
        "dimension and max_seq_length must be above 0": min(
            artefact.dimension, artefact.max_seq_length
        )
        < 1,
        "default_prompt_name is not among the prompts": artefact.default_prompt_name is not None
        and artefact.default_prompt_name not in artefact.prompts,
    }
    broken = [text for text, is_broken in problems.items() if is_broken]
    if broken:
        raise ArtefactError(f"{MANIFEST} of {artefact.model_id}: {'; '.join(broken)}.")
