"""txt2img and img2img: images from texts and from other images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.inference.tasks.answers import FILE_SCHEMA, base64_text, first, objects
from controlplane.inference.tasks.examples import PICTURE
from controlplane.inference.tasks.inputs import Media, Text
from controlplane.inference.tasks.options import Real, Whole, Word
from controlplane.inference.tasks.task import (
    MAX_SLOW_ITEMS,
    Answer,
    Event,
    Example,
    Task,
)
from controlplane.registry.model import TEXT

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Outputs

_LARGEST_SIDE = 2048
_OUTPUTS = ("image_output", "step", "steps")
_DRAWING = (
    Whole(name="steps", about="Steps of denoising.", least=1, most=200),
    Real(name="guidance_scale", about="How closely to keep to the prompt.", most=50.0),
    Word(name="negative_prompt", about="What is not to be seen.", most=TEXT),
    Whole(name="seed", about="The same seed draws the same image."),
)
_RESULT = objects({"image": FILE_SCHEMA, "format": {"const": "png"}})


def _answer(outputs: Outputs) -> Answer:
    return {"image": base64_text(first(outputs, "image_output")), "format": "png"}


def _progress(outputs: Outputs) -> Event | None:
    # the last response repeats its step beside the image, which `done` tells of
    if "image_output" in outputs or "step" not in outputs or "steps" not in outputs:
        return None
    data = {"step": first(outputs, "step"), "steps": first(outputs, "steps")}
    return Event(name="progress", data=data)


TXT2IMG = Task(
    name="txt2img",
    about="An image of what a text says.",
    inputs=(
        Text(
            name="prompt",
            aliases=("text",),
            tensor="text_input",
            about="What is to be seen, or a list of that.",
        ),
    ),
    needs=(("prompt",),),
    options=(
        Whole(name="width", about="Pixels.", least=8, most=_LARGEST_SIDE, multiple=8),
        Whole(name="height", about="Pixels.", least=8, most=_LARGEST_SIDE, multiple=8),
        *_DRAWING,
    ),
    outputs=_OUTPUTS,
    answer=_answer,
    event=_progress,
    result=_RESULT,
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"prompt": "a red square"},
        parameters={"width": 512, "height": 512, "steps": 20, "seed": 1},
        output_data={"image": PICTURE, "format": "png"},
    ),
)

IMG2IMG = Task(
    name="img2img",
    about="An image made out of another one.",
    inputs=(
        Media(name="image", tensor="image_input", about="The image to begin with."),
        Text(
            name="prompt",
            aliases=("text",),
            tensor="text_input",
            about="What is to be seen, or done to the image.",
        ),
    ),
    needs=(("image",),),
    options=(
        Real(name="strength", about="0 keeps the image, 1 forgets it.", most=1.0),
        Real(
            name="image_guidance_scale",
            about="How closely to keep to the image (InstructPix2Pix).",
            most=50.0,
        ),
        *_DRAWING,
    ),
    outputs=_OUTPUTS,
    answer=_answer,
    event=_progress,
    result=_RESULT,
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"image": PICTURE, "prompt": "a blue square"},
        parameters={"strength": 0.8, "seed": 1},
        output_data={"image": PICTURE, "format": "png"},
    ),
)

TASKS = (TXT2IMG, IMG2IMG)
