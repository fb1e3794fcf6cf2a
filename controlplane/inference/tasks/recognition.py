"""classification, question_answering and object_detection: what is in texts and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.inference.tasks.answers import (
    NUMBER_SCHEMA,
    TEXT_SCHEMA,
    WHOLE_SCHEMA,
    arrays,
    first,
    objects,
    text,
)
from controlplane.inference.tasks.examples import PICTURE
from controlplane.inference.tasks.inputs import Media, Text
from controlplane.inference.tasks.options import Flag, Real, Whole, Word, Words
from controlplane.inference.tasks.task import MAX_SLOW_ITEMS, Answer, Example, Task

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Outputs

_SIDES = ("x_min", "y_min", "x_max", "y_max")


def _classes(outputs: Outputs) -> Answer:
    pairs = zip(outputs["label"], outputs["score"], strict=True)
    return {"classes": [{"label": text(label), "score": score} for label, score in pairs]}


CLASSIFICATION = Task(
    name="classification",
    about="Labels for a text or an image, the likeliest first.",
    inputs=(
        Text(
            name="text",
            aliases=("query",),
            tensor="text_input",
            about="A text, or a list of texts; of a reranker the query.",
        ),
        Text(
            name="text_pair",
            aliases=("passage",),
            tensor="text_pair_input",
            about="A second text, for models of pairs; of a reranker the passage, or a list.",
        ),
        Media(name="image", tensor="image_input", about="An image, or a list of images."),
    ),
    needs=(("text", "image"),),
    options=(
        Whole(
            name="top_k",
            about="How many labels; left out, as the model says.",
            least=1,
            most=100_000,
        ),
        Words(
            name="candidate_labels",
            about="Labels of your own, for models of natural language inference: a list, or a text "
            "with commas between them.",
        ),
        Word(name="hypothesis_template", about="What a label says of the text: This is {}."),
        Flag(name="multi_label", about="Whether several candidates may be true."),
    ),
    outputs=("label", "score"),
    answer=_classes,
    result=objects({"classes": arrays(objects({"label": TEXT_SCHEMA, "score": NUMBER_SCHEMA}))}),
    example=Example(
        input_data={"text": "What a lovely day"},
        parameters={"top_k": 1},
        output_data={"classes": [{"label": "POSITIVE", "score": 0.5}]},
    ),
)


def _found_answer(outputs: Outputs) -> Answer:
    return {
        "answer": text(first(outputs, "text_output")),
        "score": first(outputs, "score"),
        "start": first(outputs, "start"),
        "end": first(outputs, "end"),
    }


QUESTION_ANSWERING = Task(
    name="question_answering",
    about="The answer to a question, found in a text.",
    inputs=(
        Text(
            name="question",
            aliases=("text",),
            tensor="text_input",
            about="A question, or a list.",
        ),
        Text(
            name="context",
            tensor="context_input",
            about="Where the answer is; one for all questions, or a list as long as theirs.",
        ),
    ),
    needs=(("question",), ("context",)),
    options=(
        Flag(
            name="handle_impossible_answer",
            about="Whether that there is no answer is one; it is an empty text then.",
        ),
    ),
    outputs=("text_output", "score", "start", "end"),
    answer=_found_answer,
    result=objects(
        {
            "answer": TEXT_SCHEMA,
            "score": NUMBER_SCHEMA,
            "start": {**WHOLE_SCHEMA, "description": "First character in the context."},
            "end": {**WHOLE_SCHEMA, "description": "One past the last character."},
        }
    ),
    example=Example(
        input_data={"question": "Who wrote it?", "context": "It was written by Ada."},
        output_data={"answer": "Ada", "score": 0.75, "start": 18, "end": 21},
    ),
)


def _objects(outputs: Outputs) -> Answer:
    found = zip(outputs["label"], outputs["score"], outputs["box"], strict=True)
    return {
        "objects": [
            {"label": text(label), "score": score, "box": dict(zip(_SIDES, box, strict=True))}
            for label, score, box in found
        ]
    }


OBJECT_DETECTION = Task(
    name="object_detection",
    about="What is where in an image.",
    inputs=(Media(name="image", tensor="image_input", about="An image, or a list of images."),),
    needs=(("image",),),
    options=(Real(name="threshold", about="Least score to be told of.", most=1.0),),
    outputs=("label", "score", "box"),
    answer=_objects,
    result=objects(
        {
            "objects": arrays(
                objects(
                    {
                        "label": TEXT_SCHEMA,
                        "score": NUMBER_SCHEMA,
                        "box": {
                            **objects(dict.fromkeys(_SIDES, NUMBER_SCHEMA)),
                            "description": "Pixels.",
                        },
                    }
                )
            )
        }
    ),
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"image": PICTURE},
        parameters={"threshold": 0.5},
        output_data={
            "objects": [
                {
                    "label": "cat",
                    "score": 0.75,
                    "box": {"x_min": 1.0, "y_min": 2.0, "x_max": 30.0, "y_max": 40.0},
                }
            ]
        },
    ),
)

TASKS = (CLASSIFICATION, QUESTION_ANSWERING, OBJECT_DETECTION)
