"""Decoding image files: what comes out, and what hostile bytes get."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from backends import images
from backends.errors import InputError
from backends.images import decode_image
from tests.awkward_images import awkward_images, encoded, picture, png_header, turned


def test_every_awkward_image_becomes_rgb() -> None:
    for name, raw in awkward_images().items():
        image = decode_image(raw)
        assert image.mode == "RGB", name
        assert not image.info, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_turns_a_picture_as_its_exif_says(orientation: int, format_name: str) -> None:
    raw = turned(orientation, format_name)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    found = decode_image(raw)
    assert found.tobytes() == expected.tobytes()
    assert ImageOps.exif_transpose(found).tobytes() == found.tobytes()  # nobody turns it again


def test_ignores_exif_that_is_damaged_or_means_nothing() -> None:
    assert decode_image(turned(0)).size == decode_image(turned(9)).size == (40, 24)
    broken = encoded(picture(40, 24), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff" + b"\xff" * 9)
    assert decode_image(broken).size == (40, 24)


def test_transparent_pixels_are_laid_on_white(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_STRIP_PIXELS", 300)  # several strips, the last one smaller
    image = picture(50, 41, "RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert decode_image(encoded(image)).tobytes() == expected.tobytes()


def test_16_bit_gray_keeps_its_upper_bits() -> None:
    deep = np.array([[0, 255, 256, 1000, 32768, 65535]], dtype=np.uint16)
    found = np.asarray(decode_image(encoded(Image.fromarray(deep))))
    assert found[0].tolist() == [[level >> 8] * 3 for level in deep[0].tolist()]


def test_takes_the_first_frame_of_an_animation() -> None:
    first = picture(33, 21, seed=0)
    assert decode_image(awkward_images()["animated PNG"]).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Image 7 is empty"),
        ("text", "must be the bytes of an image file, got str"),
        (None, "must be the bytes of an image file, got NoneType"),
        (b"not an image at all", "not an image that can be read; the formats are JPEG, PNG"),
        (b"\xff\xd8\xff", "not an image that can be read"),
        (b"%PDF-1.7", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
        (png_header(50_000, 50_000), "more pixels than the 64,000,000 that are allowed"),
        (png_header(2**31 - 1, 2**31 - 1), "more pixels than the 64,000,000"),
        (png_header(10_000, 10_000), "more pixels than the 64,000,000"),
        (png_header(200, 200), "Image 7 is damaged or cut off"),
        (b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0" * 20, "Image 7"),
    ],
)
def test_refuses_what_is_no_image(raw: bytes, words: str) -> None:
    with pytest.raises(InputError) as refused:
        decode_image(raw, 7)
    assert words in str(refused.value)
    assert str(refused.value).startswith("Image 7 ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["plain", "odd sizes", "lossy WebP", "BMP"])
def test_refuses_truncated_files(name: str) -> None:
    raw = awkward_images()[name]
    with pytest.raises(InputError, match="Image 0 is"):
        decode_image(raw[: len(raw) // 2])


def test_refuses_files_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = awkward_images()["plain"]
    monkeypatch.setattr(images, "MAX_BYTES", len(raw) - 1)
    with pytest.raises(InputError, match=r"has [\d,]+ bytes; at most [\d,]+ are allowed"):
        decode_image(raw)


def test_refuses_other_formats() -> None:
    for name in ("TIFF", "PPM", "ICO", "JPEG2000"):
        with pytest.raises(InputError, match="not an image that can be read"):
            decode_image(encoded(picture(20, 20), name))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere_gives_a_picture_or_an_input_error(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(sorted(awkward_images().items())))[1][:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 300)))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert decode_image(bytes(raw)).mode == "RGB"
