"""txt2txt and img2txt: text generation, chat, captions and questions about images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.inference.tasks.answers import TEXT_SCHEMA, WHOLE_SCHEMA, first, objects, text
from controlplane.inference.tasks.chat import Messages
from controlplane.inference.tasks.examples import PICTURE
from controlplane.inference.tasks.inputs import Media, Text
from controlplane.inference.tasks.options import Real, Stops, Whole
from controlplane.inference.tasks.task import (
    MAX_SLOW_ITEMS,
    Answer,
    Event,
    Example,
    Task,
)

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Outputs

_COUNTS = ("prompt_tokens", "completion_tokens")
_OUTPUTS = ("text_output", "finish_reason", *_COUNTS)
_OPTIONS = (
    Whole(
        name="max_tokens",
        aliases=("max_length",),
        about="Most tokens to generate. Default 100.",
        least=1,
        most=1_000_000,
    ),
    Real(name="temperature", about="0 takes the likeliest token each time.", most=100.0),
    Real(name="top_p", about="Of the likeliest tokens, up to this share.", most=1.0, above=True),
    Whole(name="top_k", about="Of this many likeliest tokens; 0 is all.", most=10_000_000),
    Stops(name="stop", about="Texts that end the generation; not part of the answer."),
    Whole(name="seed", about="The same seed draws the same tokens."),
    Real(
        name="repetition_penalty",
        about="Above 1: what is there already becomes less likely.",
        most=100.0,
        above=True,
    ),
)
_RESULT = objects(
    {
        "text": TEXT_SCHEMA,
        "finish_reason": {"type": "string", "description": "stop, length, …"},
        "tokens_used": {**WHOLE_SCHEMA, "description": "Of the prompt and of the answer."},
    },
    optional=("finish_reason", "tokens_used"),
)
_PROMPT = Text(
    name="prompt", aliases=("text",), tensor="text_input", about="What the text goes on from."
)


def _answer(outputs: Outputs) -> Answer:
    answer: Answer = {"text": text(first(outputs, "text_output"))}
    if "finish_reason" in outputs:
        answer["finish_reason"] = text(first(outputs, "finish_reason"))
    counts = [
        outputs[name][0] for name in ("prompt_tokens", "completion_tokens") if name in outputs
    ]
    return answer | ({"tokens_used": sum(counts)} if counts else {})


def _joined(before: Outputs, response: Outputs) -> Outputs:
    """Each response of a stream has a piece of the text."""
    pieces = [found["text_output"][0] for found in (before, response) if "text_output" in found]
    joined = {"text_output": [b"".join(pieces)]} if pieces else {}
    return {**before, **response, **joined}


def _delta(outputs: Outputs) -> Event | None:
    piece = text(first(outputs, "text_output")) if "text_output" in outputs else ""
    return Event(name="delta", data={"text": piece}) if piece else None


TXT2TXT = Task(
    name="txt2txt",
    about="Goes on from a prompt, or answers in a conversation.",
    inputs=(
        _PROMPT,
        Messages(
            name="messages",
            tensor="messages",
            about="A conversation, for models with a chat template.",
        ),
    ),
    needs=(("prompt", "messages"),),
    options=_OPTIONS,
    outputs=_OUTPUTS,
    answer=_answer,
    merge=_joined,
    event=_delta,
    streaming={"stream": True},
    result=_RESULT,
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"messages": [{"role": "user", "content": "Name a colour."}]},
        parameters={"max_tokens": 20, "temperature": 0.7, "stop": ["\n"]},
        output_data={"text": "Blue.", "finish_reason": "stop", "tokens_used": 14},
    ),
)

IMG2TXT = Task(
    name="img2txt",
    about="A caption of an image, or the answer to a question about it.",
    inputs=(
        Media(name="image", tensor="image_input", about="The image, or a list of images."),
        Text(
            name="prompt",
            aliases=("text", "question"),
            tensor="text_input",
            about="How the caption begins, or a question, as the model takes it.",
        ),
        Messages(
            name="messages",
            tensor="messages",
            image_tensor="image_input",
            about="A conversation, for chat models; the image in `image` or among the parts.",
        ),
    ),
    needs=(),
    excludes=(("prompt", "messages"),),
    needs_tensor={"image_input": "image"},
    options=_OPTIONS,
    outputs=_OUTPUTS,
    answer=_answer,
    merge=_joined,
    result=_RESULT,
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"image": PICTURE, "prompt": "a picture of"},
        parameters={"max_tokens": 30},
        output_data={"text": "a red square", "finish_reason": "stop", "tokens_used": 9},
    ),
)

TASKS = (TXT2TXT, IMG2TXT)
