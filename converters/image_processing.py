"""What a model's image processor does, as the `preprocessing` section of the manifest.

Backends preprocess with Pillow and NumPy alone (`backends/preprocessing.py`). Here the processor's
settings are written down for them, and then compared: the backend's program, in a process of its
own, preprocesses awkward pictures, and its pixel values must be the processor's.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from PIL import Image
from transformers import image_processing_backends as processing
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from converters.errors import ArtifactNotAccessible, ExportFailed, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]

MAX_PIXEL_DIFFERENCE = 1e-6
_TIMEOUT = 300.0
_PROGRAM = "backends.preprocessing"
_CONFIG = "preprocessor_config.json"

# A processor of transformers that leaves these alone does what its settings say and no more.
_STEPS = (
    *("__call__", "preprocess", "_preprocess", "_preprocess_image_like_inputs"),
    *("_prepare_image_like_inputs", "_prepare_images_structure", "_standardize_kwargs"),
    *("process_image", "convert_to_rgb", "resize", "center_crop", "rescale", "normalize", "pad"),
)
# Where ConvNeXT's processor stops cropping (image_processing_pil_convnext.py).
_CONVNEXT_CROPS_BELOW = 384


def load_processor(folder: Path) -> Any:
    """transformers' image processor of a folder, in its Pillow version.

    Raises:
        ArtifactNotAccessible: none there, or it cannot be read.
    """
    if not any((folder / name).is_file() for name in (_CONFIG, "processor_config.json")):
        raise ArtifactNotAccessible(f"{folder.name} has no {_CONFIG}.")
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ArtifactNotAccessible(
            f"The image processor cannot be read: {one_line(error)}."
        ) from error


def preprocessing_section(processor: Any) -> dict[str, Any]:
    """The manifest's `preprocessing`; see `backends.preprocessing.Preprocessing`.

    Raises:
        ExportFailed: the processor does something that the backend does not, naming it.
    """
    _require_plain(processor)
    resize, crop = _resize(processor), _crop(processor)
    if isinstance(processor, ConvNextImageProcessorPil) and resize is not None:
        resize, crop = _convnext(processor)
    size = _fixed_size(processor, resize, crop)
    values = {
        "rescale": float(processor.rescale_factor) if processor.do_rescale else None,
        "mean": _channels(processor, "image_mean") if processor.do_normalize else None,
        "std": _channels(processor, "image_std") if processor.do_normalize else None,
    }
    return {"size": size, "resize": resize, "crop": crop} | values | _pad(processor, size)


def _require_plain(processor: Any) -> None:
    kind = type(processor)
    if list(processor.model_input_names) != ["pixel_values"]:
        names = ", ".join(processor.model_input_names)
        raise _refused(kind, f"it gives {names} where only pixel_values can be served")
    if kind is ConvNextImageProcessorPil:
        return
    if not issubclass(kind, processing.PilBackend):
        raise _refused(kind, "it is not one of transformers' Pillow processors")
    for name in _STEPS:
        if getattr(kind, name) is not getattr(processing.PilBackend, name):
            raise _refused(kind, f"its step {name!r} is its own")


def _refused(kind: type, why: str) -> ExportFailed:
    return ExportFailed(f"The image processor {kind.__name__} is not supported: {why}.")


def _resize(processor: Any) -> dict[str, Any] | None:
    if not processor.do_resize:
        return None
    target = dict(processor.size or {})
    known = (
        {"height", "width"},
        {"shortest_edge"},
        {"shortest_edge", "longest_edge"},
        {"max_height", "max_width"},
    )
    if set(target) not in known:
        raise ExportFailed(f"The image processor's size {target} is not supported.")
    # Pillow's resize takes bilinear where the processor has none (image_transforms.resize).
    chosen = Image.Resampling.BILINEAR if processor.resample is None else processor.resample
    return {"target": target, "resample": int(chosen)}


def _crop(processor: Any) -> list[int] | None:
    if not getattr(processor, "do_center_crop", None):
        return None
    crop = dict(processor.crop_size or {})
    if set(crop) != {"height", "width"}:
        raise ExportFailed(f"The image processor's crop_size {crop} is not supported.")
    return [crop["height"], crop["width"]]


def _convnext(processor: Any) -> tuple[dict[str, Any], list[int] | None]:
    """ConvNeXT's own: below 384 pixels a part is cropped away, else the picture is warped."""
    edge, resample = processor.size["shortest_edge"], _resize(processor)
    if not edge or resample is None:
        raise ExportFailed(f"The image processor's size {dict(processor.size)} is not supported.")
    if edge >= _CONVNEXT_CROPS_BELOW:
        return resample | {"target": {"height": edge, "width": edge}}, _crop(processor)
    if processor.do_center_crop:
        raise ExportFailed("The image processor's do_center_crop beside crop_pct is not supported.")
    return resample | {"target": {"shortest_edge": int(edge / processor.crop_pct)}}, [edge, edge]


def _fixed_size(
    processor: Any, resize: Mapping[str, Any] | None, crop: list[int] | None
) -> list[int]:
    """[height, width] of every picture's pixel values: a graph has one size."""
    target = {} if resize is None else resize["target"]
    if processor.do_pad and processor.pad_size:
        return [processor.pad_size["height"], processor.pad_size["width"]]
    if crop is not None:
        return crop
    if "height" in target:
        return [target["height"], target["width"]]
    raise ExportFailed(
        f"The image processor gives pictures of any size (size {dict(processor.size or {})} "
        "without do_center_crop); only one fixed size can be served."
    )


def _channels(processor: Any, name: str) -> list[float]:
    value = getattr(processor, name)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise ExportFailed(f"The image processor's {name} has {len(values)} values, not 3.")
    return [float(number) for number in values]


def _pad(processor: Any, size: list[int]) -> dict[str, Any]:
    if not processor.do_pad:
        return {}
    if not processor.pad_size:
        raise ExportFailed("The image processor's do_pad without pad_size is not supported.")
    return {"pad": list(size) == [processor.pad_size["height"], processor.pad_size["width"]]}


# -- comparing ------------------------------------------------------------------------------------


def check_pictures() -> list[Image.Image]:
    """RGB pictures that tell preprocessings apart: shapes and sizes, noise and smooth colours."""
    sizes = [(640, 480), (333, 500), (224, 224), (225, 223), (64, 48), (47, 31), (1, 1)]
    sizes += [(700, 30), (17, 400), (512, 512), (1200, 801), (90, 90)]
    return [_picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]


def _picture(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 10 + 4 * seed, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    phases = (seed + 1) * np.array([1.0, 1.7, 2.9])
    waves = 127 + 110 * np.sin((x / width + 2 * y / height)[..., None] * phases + seed)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def reference_pixels(processor: Any, pictures: list[Image.Image]) -> Pixels:
    """The processor's own pixel values, FP32 `[pictures, 3, height, width]`.

    Raises:
        ExportFailed: it fails on them.
    """
    try:
        found = processor(images=pictures, return_tensors="np")["pixel_values"]
    except Exception as error:
        raise ExportFailed(
            f"The image processor fails on ordinary pictures: {one_line(error)}."
        ) from error
    return np.asarray(found, dtype=np.float32)


def backend_pixels(section: Mapping[str, Any], pictures: list[Image.Image]) -> Pixels:
    """What the backend's program makes of the pictures, sent as PNG files.

    Raises:
        ExportFailed: it fails, or gives something of another size.
    """
    images = [base64.b64encode(_png(picture)).decode() for picture in pictures]
    asked = json.dumps({"preprocessing": dict(section), "images": images})
    done = subprocess.run(
        [sys.executable, "-m", _PROGRAM],
        input=asked.encode(),
        capture_output=True,
        check=False,
        timeout=_TIMEOUT,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ExportFailed(f"The image processor's settings cannot be served: {lines[-1]}.")
    shape = (len(pictures), 3, *section["size"])
    values = np.frombuffer(done.stdout, dtype=np.float32)
    if values.size != np.prod(shape):
        raise ExportFailed(f"The backend gave {values.size} pixel values instead of {shape}.")
    return values.reshape(shape)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def require_equal(expected: Pixels, found: Pixels) -> float:
    """The largest difference of two sets of pixel values.

    Raises:
        ExportFailed: it is above 1e-6, or the shapes differ.
    """
    if expected.shape != found.shape:
        raise ExportFailed(
            f"The image processor gives pixel values of {list(expected.shape[1:])}, "
            f"the backend {list(found.shape[1:])}."
        )
    difference = float(np.abs(expected - found).max())
    if not difference <= MAX_PIXEL_DIFFERENCE:
        raise ExportFailed(
            f"The backend's pixel values differ from the image processor's by {difference:.1e}."
        )
    return difference
