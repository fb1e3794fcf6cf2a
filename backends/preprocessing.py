"""From an upright RGB picture to a model's pixel values, as its transformers image processor does.

The converter writes what the processor does as a list of steps into the manifest (`preprocessing`);
each step here computes what transformers' Pillow processors compute
(`transformers/image_transforms.py`), to the last bit.

Run as a program, this is how the converter compares it with the processor itself: it reads
`{"preprocessing": …, "images": [base64, …]}` from standard input and writes the pixel values, FP32
`[number of images, 3, height, width]` in C order and native byte order, to standard output.
"""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from backends.errors import InputError
from backends.images import MAX_PIXELS, decode_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Size = tuple[int, int]

CHANNELS = 3


@dataclass(frozen=True)
class Resize:
    """To a new size with one of Pillow's filters.

    Attributes:
        target: `height` and `width`; or `shortest_edge` (the other follows); or `shortest_edge`
            and `longest_edge` (which wins); or `max_height` and `max_width` (fits into both).
        resample: Pillow's number of the filter, e.g. 3 for bicubic.
    """

    target: Mapping[str, int]
    resample: int

    def size(self, height: int, width: int) -> Size:
        """(height, width) that a picture is resized to."""
        target = self.target
        if "height" in target:
            return target["height"], target["width"]
        if "max_height" in target:
            return _fitting(height, width, target["max_height"], target["max_width"])
        if "longest_edge" in target:
            return _between(height, width, target["shortest_edge"], target["longest_edge"])
        short = target["shortest_edge"]
        if width <= height:
            return int(short * height / width), short
        return short, int(short * width / height)


def _fitting(height: int, width: int, max_height: int, max_width: int) -> Size:
    # image_utils.get_image_size_for_max_height_width
    scale = min(max_height / height, max_width / width)
    return int(height * scale), int(width * scale)


def _between(height: int, width: int, shortest: int, longest: int) -> Size:
    # image_transforms.get_size_with_aspect_ratio
    exact: float = shortest
    short, long = float(min(height, width)), float(max(height, width))
    if long / short * shortest > longest:
        exact = longest * short / long
    size = round(exact)
    if min(height, width) == size:
        return height, width
    if width < height:
        return int(exact * height / width), size
    return size, int(exact * width / height)


@dataclass(frozen=True)
class Preprocessing:
    """What makes a picture into pixel values: resize, centre crop, then values by a formula.

    A pixel of the value v becomes `(v * rescale - mean) / std`, each part where it is given.

    Attributes:
        size: (height, width) of the result, whatever the picture's.
        pad: to `size` with zeros at the right and the bottom, behind the formula.
    """

    size: Size
    resize: Resize | None
    crop: Size | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    pad: bool = False

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """FP32 `[3, 256]`: the formula for each channel and value, in transformers' arithmetic."""
        values = np.tile(np.arange(256, dtype=np.float32), (CHANNELS, 1))
        if self.rescale is not None:
            values = (values.astype(np.float64) * self.rescale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(part, np.float32)[:, None] for part in (self.mean, self.std))
            values = (values - mean) / std
        return values

    def pixel_values(self, image: Image.Image, index: int = 0) -> NDArray[np.float32]:
        """Preprocess one picture.

        Args:
            image: upright and RGB (`images.decode_image`).
            index: which image of the request it is, for the message.

        Returns:
            FP32 `[3, height, width]`.

        Raises:
            InputError: its sides are so unequal that it would become a giant when resized.
        """
        if self.resize is not None:
            image = _resized(image, self.resize, index)
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _center_cropped(pixels, self.crop)
        height, width, _ = pixels.shape
        self._require_size((height, width), index)
        values = np.zeros((CHANNELS, *self.size), np.float32)
        for channel, table in enumerate(self.table):
            values[channel, :height, :width] = table[pixels[..., channel]]
        return values

    def _require_size(self, found: Size, index: int) -> None:
        fits = found[0] <= self.size[0] and found[1] <= self.size[1] if self.pad else False
        if found != self.size and not fits:
            raise InputError(
                f"Image {index} has {found[0]} x {found[1]} pixels (height x width) where the "
                f"model takes {self.size[0]} x {self.size[1]}."
            )


def read_preprocessing(section: Mapping[str, Any]) -> Preprocessing:
    """The manifest's `preprocessing`.

    Raises:
        KeyError, TypeError, ValueError: it is not what the converter writes.
    """
    resize, crop = section.get("resize"), section.get("crop")
    mean, std = section.get("mean"), section.get("std")
    rescale = section.get("rescale")
    return Preprocessing(
        size=_size(section["size"]),
        resize=None if resize is None else Resize(dict(resize["target"]), int(resize["resample"])),
        crop=None if crop is None else _size(crop),
        rescale=None if rescale is None else float(rescale),
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
        pad=bool(section.get("pad", False)),
    )


def _size(value: Any) -> Size:
    height, width = value
    if min(int(height), int(width)) < 1:
        raise ValueError(f"{value} is not a height and a width")
    return int(height), int(width)


def _resized(image: Image.Image, step: Resize, index: int) -> Image.Image:
    height, width = step.size(image.height, image.width)
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(
            f"Image {index} has {image.width:,} x {image.height:,} pixels: its sides are too "
            f"unequal for this model, which would make it {width:,} x {height:,}; crop it."
        )
    return image.resize((width, height), Image.Resampling(step.resample))


def _center_cropped(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The middle `[height, width, 3]`; black where the picture is smaller.

    image_transforms.center_crop, whose rounding differs between cropping and filling.
    """
    for axis, wanted in enumerate(size):
        pixels = np.moveaxis(_centered(np.moveaxis(pixels, axis, 0), wanted), 0, axis)
    return pixels


def _centered(rows: NDArray[np.uint8], wanted: int) -> NDArray[np.uint8]:
    found = len(rows)
    if found >= wanted:
        start = (found - wanted) // 2
        return rows[start : start + wanted]
    filled = np.zeros((wanted, *rows.shape[1:]), rows.dtype)
    start = -((found - wanted) // 2)
    filled[start : start + found] = rows
    return filled


def main() -> None:
    """See the module's docstring."""
    asked = json.load(sys.stdin)
    preprocessing = read_preprocessing(asked["preprocessing"])
    for index, encoded in enumerate(asked["images"]):
        image = decode_image(base64.b64decode(encoded), index)
        sys.stdout.buffer.write(preprocessing.pixel_values(image, index).tobytes())


if __name__ == "__main__":
    main()
