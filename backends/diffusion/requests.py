"""One request for a picture: its inputs and parameters, checked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.errors import InputError
from backends.images import decode_image
from backends.request_parameters import real_number, short_text, whole_number
from backends.request_texts import MAX_CHARACTERS, read_bytes, read_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from backends.diffusion.artefact import DiffusionArtefact

MAX_STEPS = 200
MAX_SIDE = 2048
MAX_GUIDANCE = 50.0
MAX_SEED = 2**63 - 1
MULTIPLE = 8


@dataclass(frozen=True)
class Defaults:
    """A pipeline's own defaults, and which parameters it knows at all."""

    steps: int
    guidance_scale: float
    strength: float
    image_guidance_scale: float
    known: frozenset[str]


@dataclass(frozen=True)
class PictureRequest:
    """What a picture is made of.

    Attributes:
        image: for img2img the picture to start from, its sides multiples of 8; else None.
        width, height: pixels; those of `image` where there is one.
        seed: of the noise; a random one where the request names none.
    """

    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance_scale: float
    strength: float
    image_guidance_scale: float
    seed: int
    image: Image.Image | None = None


def read_request(
    inputs: Mapping[str, Any],
    parameters: Mapping[str, Any],
    artefact: DiffusionArtefact,
    defaults: Defaults,
) -> PictureRequest:
    """Check a request's tensors, arrays of `[1]`, and its parameters.

    Raises:
        InputError: an input that is missing or damaged; a parameter beyond its limits, or one
            that the pipeline does not have.
    """
    _refuse_unknown(parameters, artefact, defaults)
    image = _image(inputs) if artefact.takes_image else None
    width, height = (image.width, image.height) if image else _size(parameters, artefact)
    steps = whole_number(parameters, "steps", defaults.steps, low=1, high=MAX_STEPS)
    seed = whole_number(parameters, "seed", None, low=0, high=MAX_SEED)
    strength = real_number(parameters, "strength", defaults.strength, low=0.0, high=1.0)
    assert steps is not None
    if image is not None and "strength" in defaults.known and int(steps * strength) < 1:
        raise InputError(
            f"Parameters steps ({steps}) and strength ({strength:g}) leave no step to be made; "
            "their product must be at least 1."
        )
    return PictureRequest(
        prompt=_prompt(inputs, needed=image is None),
        negative_prompt=short_text(parameters, "negative_prompt", None, longest=MAX_CHARACTERS),
        width=width,
        height=height,
        steps=steps,
        guidance_scale=real_number(
            parameters, "guidance_scale", defaults.guidance_scale, low=0.0, high=MAX_GUIDANCE
        ),
        strength=strength,
        image_guidance_scale=real_number(
            parameters,
            "image_guidance_scale",
            defaults.image_guidance_scale,
            low=0.0,
            high=MAX_GUIDANCE,
        ),
        seed=secrets.randbelow(2**32) if seed is None else seed,
        image=image,
    )


def _refuse_unknown(
    parameters: Mapping[str, Any], artefact: DiffusionArtefact, defaults: Defaults
) -> None:
    for name in ("negative_prompt", "guidance_scale", "strength", "image_guidance_scale"):
        if parameters.get(name) is not None and name not in defaults.known:
            raise InputError(f"Parameter {name} is none that model {artefact.model_id} takes.")
    for name in ("width", "height"):
        if artefact.takes_image and parameters.get(name) is not None:
            raise InputError(
                f"Parameter {name} must be left out: the picture gets the size of image_input."
            )


def _size(parameters: Mapping[str, Any], artefact: DiffusionArtefact) -> tuple[int, int]:
    low, default = artefact.smallest_size, artefact.default_size
    sides = []
    for name in ("width", "height"):
        side = whole_number(parameters, name, default, low=min(low, default), high=MAX_SIDE)
        assert side is not None
        if side % MULTIPLE:
            raise InputError(f"Parameter {name} must be a multiple of {MULTIPLE}, got {side}.")
        sides.append(side)
    return sides[0], sides[1]


def _prompt(inputs: Mapping[str, Any], *, needed: bool) -> str:
    if inputs.get("text_input") is None:
        if needed:
            raise InputError("The input text_input is missing.")
        return ""
    texts = read_texts("text_input", inputs["text_input"])
    if len(texts) != 1:
        raise InputError(f"text_input must hold one text, got {len(texts)}.")
    return texts[0]


def _image(inputs: Mapping[str, Any]) -> Image.Image:
    if inputs.get("image_input") is None:
        raise InputError("The input image_input is missing.")
    files = read_bytes("image_input", inputs["image_input"])
    if len(files) != 1:
        raise InputError(f"image_input must hold one image, got {len(files)}.")
    image = decode_image(files[0])
    if max(image.size) > MAX_SIDE or min(image.size) < MULTIPLE:
        raise InputError(
            f"image_input has {image.width} x {image.height} pixels; each side must have from "
            f"{MULTIPLE} to {MAX_SIDE:,}."
        )
    return image
