"""Pixel values of the backend are those of transformers' own image processors."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from backends.errors import InputError
from backends.images import decode_image
from backends.preprocessing import Preprocessing, read_preprocessing
from tests.awkward_images import awkward_images, encoded, picture

pytestmark = pytest.mark.torch


def processors() -> dict[str, Any]:
    """Image processors of the families, with their own and with odd settings."""
    import transformers

    made: dict[str, Any] = {}

    def add(name: str, kind: str, **options: Any) -> None:
        made[name] = getattr(transformers, kind)(**options)

    small = {"height": 32, "width": 32}
    add("CLIP", "CLIPImageProcessorPil", size={"shortest_edge": 32}, crop_size=small)
    add("CLIP as published", "CLIPImageProcessorPil")
    add("SigLIP", "SiglipImageProcessorPil", size={"height": 40, "width": 36})
    add("ViT", "ViTImageProcessorPil", size=small)
    add("ViT, nearest", "ViTImageProcessorPil", size=small, resample=0, do_convert_rgb=True)
    add("DINOv2", "BitImageProcessorPil", size={"shortest_edge": 37}, crop_size=small)
    add("crop larger", "BitImageProcessorPil", size={"shortest_edge": 20}, crop_size=small)
    add("crop odd", "BitImageProcessorPil", crop_size={"height": 31, "width": 45})
    add("ConvNeXT", "ConvNextImageProcessorPil", size={"shortest_edge": 64})
    add("ConvNeXT, warping", "ConvNextImageProcessorPil", size={"shortest_edge": 384})
    add("no rescaling", "ViTImageProcessorPil", size=small, do_rescale=False)
    add("no normalising", "ViTImageProcessorPil", size=small, do_normalize=False)
    add("neither", "ViTImageProcessorPil", size=small, do_normalize=False, do_rescale=False)
    add("other factor", "ViTImageProcessorPil", size=small, rescale_factor=1 / 127.5)
    edges = {"shortest_edge": 40, "longest_edge": 60}
    add("longest edge", "CLIPImageProcessorPil", size=edges, crop_size=small)
    within = {"max_height": 40, "max_width": 50}
    add("within", "CLIPImageProcessorPil", size=within, crop_size=small, resample=1)
    add("cropped only", "CLIPImageProcessorPil", do_resize=False, crop_size=small)
    padded = {"pad_size": {"height": 60, "width": 70}, "do_center_crop": False, "do_pad": True}
    add("padded", "CLIPImageProcessorPil", size=within, **padded)
    return made


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return processors()


def section(processor: Any) -> dict[str, Any]:
    from converters.image_processing import preprocessing_section

    return preprocessing_section(processor)


def upright(raw: bytes) -> Image.Image:
    """What a user of transformers gives to the processor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))


@pytest.mark.parametrize("name", processors())
def test_equals_the_image_processor_bit_for_bit(name: str, known: dict[str, Any]) -> None:
    processor = known[name]
    ours = read_preprocessing(section(processor))
    for what, raw in awkward_images().items():
        # Without do_convert_rgb processors fail on anything but RGB.
        image = upright(raw) if processor.do_convert_rgb else decode_image(raw)
        try:
            expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        except ValueError:
            with pytest.raises(InputError):  # a side becomes 0 pixels long
                ours.pixel_values(decode_image(raw))
            continue
        found = ours.pixel_values(decode_image(raw))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float32), err_msg=what)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), edge=st.integers(1, 60))
def test_any_size_with_any_edge_and_crop(width: int, height: int, edge: int) -> None:
    import transformers

    crop = {"height": edge, "width": max(1, edge // 2)}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=crop)
    image = picture(width, height)
    expected = processor(images=image, return_tensors="np")["pixel_values"][0]
    found = read_preprocessing(section(processor)).pixel_values(image)
    np.testing.assert_array_equal(found, expected)


def test_the_programme_gives_what_the_converter_expects(known: dict[str, Any]) -> None:
    from converters import image_processing

    pictures = image_processing.check_pictures()
    expected = image_processing.reference_pixels(known["CLIP"], pictures)
    found = image_processing.backend_pixels(section(known["CLIP"]), pictures)
    assert image_processing.require_equal(expected, found) == 0.0


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("CLIPImageProcessorPil", {"do_center_crop": False}, "pictures of any size"),
        ("CLIPImageProcessorPil", {"size": {"longest_edge": 32}}, "size {'longest_edge': 32}"),
        ("CLIPImageProcessorPil", {"do_pad": True}, "do_pad without pad_size"),
        ("ViTImageProcessorPil", {"image_mean": [0.5], "image_std": [0.5]}, "image_mean has 1"),
        ("ConvNextImageProcessorPil", {"size": {"height": 9, "width": 9}}, "size"),
        ("Siglip2ImageProcessorPil", {}, "Siglip2ImageProcessorPil"),
        ("BlipImageProcessorPil", {}, ""),
        ("EfficientNetImageProcessorPil", {}, "EfficientNetImageProcessorPil is not supported"),
    ],
)
def test_refuses_what_it_cannot_reproduce(kind: str, options: dict[str, Any], words: str) -> None:
    import transformers

    from converters.errors import ExportFailed

    processor = getattr(transformers, kind)(**options)
    if not words:
        section(processor)
        return
    with pytest.raises(ExportFailed) as refused:
        section(processor)
    assert words in str(refused.value)


def test_refuses_to_make_giants() -> None:
    clip = read_preprocessing(
        {
            "size": [9, 9],
            "resize": {"target": {"shortest_edge": 224}, "resample": 3},
            "crop": [9, 9],
        }
    )
    with pytest.raises(InputError, match=r"Image 3 has 60,000 x 5 pixels: its sides are too uneq"):
        clip.pixel_values(Image.new("RGB", (60_000, 5)), 3)


def test_refuses_another_size_than_the_graphs() -> None:
    only = Preprocessing((9, 9), None, None, None, None, None)
    with pytest.raises(InputError, match="Image 1 has 5 x 7 pixels"):
        only.pixel_values(decode_image(encoded(picture(7, 5))), 1)


@pytest.mark.parametrize("size", [None, [1], [0, 4], "ab"])
def test_refuses_a_damaged_section(size: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_preprocessing({"size": size})
