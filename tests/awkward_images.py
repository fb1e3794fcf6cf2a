"""Pictures that preprocessing gets wrong, made with Pillow: the bytes of image files by name."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image


def pixels(width: int, height: int, channels: int = 3, *, seed: int = 0) -> np.ndarray[Any, Any]:
    """UINT8 `[height, width, channels]`: smooth waves with noise, so that no two places are equal
    and yet JPEG does not destroy everything."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin((c + 2 + seed) * (x / max(width, 2) + y / max(height, 2))) for c in range(channels)
    ]
    noisy = np.stack(waves, axis=-1) * 90 + 128 + rng.normal(0, 12, (height, width, channels))
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)


def picture(width: int, height: int, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    """A picture of `pixels` in one of Pillow's modes."""
    if mode == "I;16":
        wide = pixels(width, height, 1, seed=seed)[..., 0].astype(np.uint16)
        return Image.fromarray(wide * 256 + wide)
    channels = len(Image.getmodebands(mode) * "x")
    if mode in ("1", "P"):
        return Image.fromarray(pixels(width, height, seed=seed)).convert(mode)
    raw = pixels(width, height, channels, seed=seed)
    return Image.fromarray(raw[..., 0] if channels == 1 else raw, mode=None).convert(mode)


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def turned(orientation: int, format_name: str = "JPEG", size: tuple[int, int] = (40, 24)) -> bytes:
    """A file whose EXIF says how it is to be turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture(*size), format_name, exif=exif)


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that promises `width` x `height` pixels and holds nearly none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _animation(format_name: str) -> bytes:
    frames = [picture(33, 21, seed=seed) for seed in range(3)]
    return encoded(frames[0], format_name, save_all=True, append_images=frames[1:], duration=50)


def _transparent_palette() -> bytes:
    image = picture(30, 20, "P")
    return encoded(image, transparency=bytes(range(0, 256)))


@cache
def awkward_images() -> dict[str, bytes]:
    """Image files by what is odd about them; all of them can be decoded."""
    found = {
        "plain": encoded(picture(64, 48), "JPEG"),
        "odd sizes": encoded(picture(37, 53)),
        "1x1": encoded(picture(1, 1)),
        "one pixel high": encoded(picture(400, 1)),
        "one pixel wide": encoded(picture(1, 400)),
        "extreme aspect": encoded(picture(900, 11), "JPEG"),
        "the crop's size": encoded(picture(32, 32)),
        "smaller than the crop": encoded(picture(9, 5)),
        "large": encoded(picture(1201, 803), "JPEG", quality=60),
        "gray JPEG": encoded(picture(45, 31, "L"), "JPEG"),
        "gray PNG": encoded(picture(31, 45, "L")),
        "black and white": encoded(picture(40, 40, "1")),
        "alpha": encoded(picture(50, 40, "RGBA")),
        "gray with alpha": encoded(picture(40, 50, "LA")),
        "WebP with alpha": encoded(picture(50, 40, "RGBA"), "WEBP", lossless=True),
        "palette": encoded(picture(44, 33, "P")),
        "transparent palette": _transparent_palette(),
        "transparent colour": encoded(picture(20, 20), transparency=(128, 128, 128)),
        "CMYK": encoded(picture(60, 40, "CMYK"), "JPEG"),
        "progressive": encoded(picture(70, 50), "JPEG", progressive=True),
        "lossy WebP": encoded(picture(70, 51), "WEBP"),
        "BMP": encoded(picture(21, 17), "BMP"),
        "animated GIF": _animation("GIF"),
        "animated WebP": _animation("WEBP"),
        "animated PNG": _animation("PNG"),
    }
    found |= {f"EXIF {n}": turned(n) for n in range(1, 9)}
    return found
