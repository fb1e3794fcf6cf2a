"""From the bytes of an image file to the upright RGB picture that a model looks at.

What a request carries is hostile until it is decoded: sizes are checked before anything is, only
the formats named here are tried, and whatever Pillow raises becomes one sentence.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from backends.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 50_000_000
MAX_PIXELS = 64_000_000

# Not TIFF: libtiff unpacks a dozen codecs of its own, and no browser sends it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_NAMES = "JPEG, PNG, WebP, GIF and BMP"

# Transparent pictures are laid on white in strips: whole, they would exist four times.
_STRIP_PIXELS = 1 << 20

# How to turn a picture upright, by EXIF's orientation (CIPA DC-008, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(encoded: Any, index: int = 0) -> Image.Image:
    """Decode one image file, of an animation the first frame.

    The picture is what transformers' image processors make of an upright `PIL.Image`
    (`image_transforms.convert_to_rgb`): transparent pixels are laid on white; grayscale, palette
    and CMYK become RGB by Pillow's conversion. One difference: 16-bit grayscale keeps its upper
    8 bits, as Pillow itself does for 16-bit colour; transformers clips it at 255, to white.

    Args:
        encoded: the bytes of a JPEG, PNG, WebP, GIF or BMP file, at most 50 MB and 64 megapixels.
        index: which image of the request this is, for the message.

    Returns:
        Mode RGB, turned as EXIF's orientation says.

    Raises:
        InputError: no bytes, too large, another format, truncated or otherwise damaged.
    """
    if not isinstance(encoded, bytes):
        raise InputError(
            f"Image {index} must be the bytes of an image file, got {type(encoded).__name__}."
        )
    _require_encoded_size(encoded, index)
    try:
        rgb, method = _read(encoded)
    except (_TooManyPixels, Image.DecompressionBombError) as error:
        raise InputError(
            f"Image {index} has more pixels than the {MAX_PIXELS:,} that are allowed; "
            "make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"Image {index} is not an image that can be read; the formats are {_NAMES}."
        ) from error
    except Exception as error:
        # Damaged files make Pillow's plugins raise nearly anything (SyntaxError, struct.error,
        # IndexError), and none of it may end the stub.
        raise InputError(f"Image {index} is damaged or cut off: {_line(error)}.") from error
    upright = rgb if method is None else rgb.transpose(method)
    upright.info.clear()  # else who looks for EXIF's orientation turns it once more
    return upright


class _TooManyPixels(Exception):
    """The header tells of more pixels than are allowed."""


def _require_encoded_size(encoded: bytes, index: int) -> None:
    if not encoded:
        raise InputError(f"Image {index} is empty; send the bytes of an image file.")
    if len(encoded) > MAX_BYTES:
        raise InputError(
            f"Image {index} has {len(encoded):,} bytes; at most {MAX_BYTES:,} are allowed."
        )


def _read(encoded: bytes) -> tuple[Image.Image, Image.Transpose | None]:
    """The picture in RGB as it is stored, and what turns it upright."""
    with _silent(), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _TooManyPixels
        image.load()
        # After loading: a PNG may carry its EXIF behind the pixels.
        method = _UPRIGHT.get(_orientation(image))
        return _rgb(image), method


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without Pillow's warnings: of large pictures, where our own limit is lower and an error, and
    of damaged metadata, which do not matter to a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none; a picture with damaged EXIF data is a picture."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - as in decode_image
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _on_white(image)
    # Where it is RGB already a copy would only cost memory.
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for box in _strips(image.size):
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return rgb


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) that together cover a picture, from its top down."""
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
