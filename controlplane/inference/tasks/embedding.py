"""txt2embed and img2embed: vectors of texts and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.inference.tasks.answers import (
    NUMBER_SCHEMA,
    WHOLE_SCHEMA,
    arrays,
    objects,
)
from controlplane.inference.tasks.examples import PICTURE
from controlplane.inference.tasks.inputs import Media, Text
from controlplane.inference.tasks.options import Flag, Word
from controlplane.inference.tasks.task import Answer, Example, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.inference.tasks.plan import Outputs

_NORMALIZE = Flag(name="normalize", about="Vectors of length 1. Left out: as the model says.")


def _answer(outputs: Outputs) -> Answer:
    vector = outputs["embedding"]
    return {"embedding": vector, "dimension": len(vector)}


def _answers(answers: Sequence[Answer]) -> Answer:
    """`embeddings` for lists (domain C-21)."""
    vectors = [answer["embedding"] for answer in answers]
    return {"embeddings": vectors, "dimension": len(vectors[0]) if vectors else 0}


_VECTOR: dict[str, Any] = arrays(NUMBER_SCHEMA)
_ONE = objects({"embedding": _VECTOR, "dimension": WHOLE_SCHEMA})
_MANY = objects({"embeddings": arrays(_VECTOR), "dimension": WHOLE_SCHEMA})

TXT2EMBED = Task(
    name="txt2embed",
    about="Texts to vectors.",
    inputs=(Text(name="text", tensor="text_input", about="A text, or a list of texts."),),
    needs=(("text",),),
    options=(
        _NORMALIZE,
        Word(name="prompt_name", about="Which of the model's own prompts goes before each text."),
    ),
    outputs=("embedding",),
    answer=_answer,
    answers=_answers,
    result=_ONE,
    results=_MANY,
    example=Example(
        input_data={"text": "How do I reset my password?"},
        parameters={"normalize": True},
        output_data={"embedding": [0.0625, -0.125, 0.25], "dimension": 3},
    ),
)

IMG2EMBED = Task(
    name="img2embed",
    about="Images to vectors; for models like CLIP texts too, in the same space.",
    inputs=(
        Media(name="image", tensor="image_input", about="An image, or a list of images."),
        Text(name="text", tensor="text_input", about="A text in the place of an image."),
    ),
    needs=(("image", "text"),),
    options=(_NORMALIZE,),
    outputs=("embedding",),
    answer=_answer,
    answers=_answers,
    result=_ONE,
    results=_MANY,
    example=Example(
        input_data={"image": PICTURE},
        output_data={"embedding": [0.0625, -0.125, 0.25], "dimension": 3},
    ),
)

TASKS = (TXT2EMBED, IMG2EMBED)
