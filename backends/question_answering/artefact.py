"""What the question_answering backend reads of an artefact's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.errors import ArtefactError
from backends.manifest import read_manifest, reading
from backends.text_graph import TextGraphArtefact, text_graph_artefact

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class QuestionAnsweringArtefact:
    """A converted extractive reader.

    Attributes:
        window: tokens read at a time, question and special tokens included.
        stride: tokens of the context that two neighbouring windows share.
        max_answer_tokens: of one answer.
        may_have_no_answer: the model was trained on questions without an answer (SQuAD 2.0).
    """

    text: TextGraphArtefact
    window: int
    stride: int
    max_answer_tokens: int
    may_have_no_answer: bool


def read_artefact(folder: Path) -> QuestionAnsweringArtefact:
    """Read and check the manifest of a version folder.

    Raises:
        ArtefactError: see `read_manifest`; or windows that overlap wholly.
    """
    manifest = read_manifest(folder)
    with reading(folder):
        section = manifest["question_answering"]
        artefact = QuestionAnsweringArtefact(
            text=text_graph_artefact(folder, manifest, section),
            window=int(section["window"]),
            stride=int(section["stride"]),
            max_answer_tokens=int(section["max_answer_tokens"]),
            may_have_no_answer=bool(section["may_have_no_answer"]),
        )
    if not 0 <= artefact.stride < artefact.window or artefact.max_answer_tokens < 1:
        raise ArtefactError(f"The manifest of {artefact.text.model_id} has no usable windows.")
    return artefact
