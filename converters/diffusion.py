"""Tasks txt2img and img2img: a diffusers pipeline, tried once, packaged with its own files."""

from __future__ import annotations

import base64
import importlib.util
import inspect
import io
import warnings
from typing import TYPE_CHECKING, Any

from converters import exporting
from converters.conversion import fresh_output
from converters.errors import ArtifactNotAccessible, ExportFailed, UnsafeWeights, one_line
from converters.exporting import tensor
from converters.manifest import write_manifest
from converters.packaging import MODEL_FOLDER, package
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from converters.conversion import Conversion

MODEL_INDEX = "model_index.json"
_AUTOMATIC = {"txt2img": "AutoPipelineForText2Image", "img2img": "AutoPipelineForImage2Image"}
# Pipelines that change pictures as a text says, which the automatic classes do not know.
_EDITING = ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline")
# Small enough for one step within a second, large enough for autoencoders that shrink by 8 and
# networks that halve three times more.
_SMALL = 64
_PRECISIONS = ("fp32", "bf16")
_MOST_LATENTS = 256


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the tasks txt2img and img2img.

    Raises:
        ConversionError: its subclass tells why; `output` is gone then, unless it existed before.
    """
    pipeline = _checked_pipeline(conversion.source)
    if conversion.engine not in (None, "diffusers"):
        raise ExportFailed(
            f"The task {conversion.task} runs on diffusers, not {conversion.engine}."
        )
    precision = conversion.precision or "fp32"
    if precision not in _PRECISIONS:
        raise ExportFailed(f"The precision {precision} is none of {', '.join(_PRECISIONS)}.")
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and diffusers")
        pipe, variant = _load(conversion, pipeline)
        conversion.events.progress("verify", 0.0, "making a small picture in one step")
        small = _try(pipe, conversion.task)
        package(conversion)
        manifest = _manifest(conversion, pipe, variant, small, precision)
        return write_manifest(conversion.output, manifest)


def _checked_pipeline(source: Path) -> str:
    """The pipeline's class; only diffusers' and transformers' own are imported.

    Raises:
        ArtifactNotAccessible: model_index.json is missing or damaged.
        ExportFailed: it names code of the repository, or of another library.
    """
    index = read_json(source / MODEL_INDEX)
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ArtifactNotAccessible(f"{MODEL_INDEX} names no pipeline.")
    if not isinstance(index["_class_name"], str):
        raise ExportFailed("The pipeline is code of the repository's own, which is not run.")
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[:1] == [None]:
            continue
        library = entry[0] if entry and isinstance(entry[0], str) else ""
        if library not in ("diffusers", "transformers") and not _is_diffusers_own(library):
            raise ExportFailed(
                f"The component {name!r} of {MODEL_INDEX} comes from {library!r}: only classes of "
                "diffusers and transformers are run."
            )
    return str(index["_class_name"])


def _is_diffusers_own(library: str) -> bool:
    """Pipelines keep classes of their own, such as `stable_diffusion`'s safety checker."""
    own = f"diffusers.pipelines.{library}"
    return library.isidentifier() and importlib.util.find_spec(own) is not None


def _load(conversion: Conversion, pipeline: str) -> tuple[Any, str | None]:
    """The pipeline in float32, and the variant of its weights."""
    import diffusers
    import torch

    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    diffusers.utils.logging.disable_progress_bar()
    names = [path.name for path in conversion.source.glob("*/*")]
    if not conversion.allow_pickle and any(name.endswith(".bin") for name in names):
        raise UnsafeWeights(
            "Weights of the pipeline are pickles, which can run code when they are read."
        )
    variant = "fp16" if any(".fp16" in name for name in names) else None
    edits = conversion.task == "img2img" and pipeline in _EDITING
    kind = getattr(diffusers, pipeline if edits else _AUTOMATIC[conversion.task])
    try:
        with warnings.catch_warnings():
            # `torch_dtype` has become `dtype` within the releases that we support.
            warnings.simplefilter("ignore", FutureWarning)
            pipe = kind.from_pretrained(
                conversion.source,
                torch_dtype=torch.float32,
                variant=variant,
                use_safetensors=None if conversion.allow_pickle else True,
                local_files_only=True,
            )
    except Exception as error:
        if "AutoPipeline can't find" in str(error):
            serves = "; it serves img2img" if pipeline in _EDITING else ""
            raise ExportFailed(
                f"diffusers has no {conversion.task} for the pipeline {pipeline}{serves}."
            ) from error
        raise ArtifactNotAccessible(
            f"The files do not give a pipeline for {conversion.task}: {one_line(error)}."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe, variant


def _try(pipe: Any, task: str) -> int:
    """Make a picture in one step; the width and height it was made with.

    Raises:
        ExportFailed: the pipeline breaks, or gives no finite numbers.
    """
    failure: Exception | None = None
    for size in dict.fromkeys((_SMALL, _default_size(pipe))):
        try:
            _make_one(pipe, task, size)
        except ExportFailed:
            raise
        except Exception as error:  # noqa: BLE001 - pipelines raise anything
            failure = error
            continue
        return size
    assert failure is not None
    raise ExportFailed(f"The pipeline made no picture: {one_line(failure)}.") from failure


def _make_one(pipe: Any, task: str, size: int) -> None:
    import numpy as np
    import torch

    options: dict[str, Any] = {"width": size, "height": size}
    if task == "img2img":
        options = {"image": _gray(size)}
        options |= _full_strength(pipe)
    generator = torch.Generator().manual_seed(0)
    found = pipe(
        prompt="a",
        num_inference_steps=_least_steps(pipe),
        generator=generator,
        output_type="np",
        **options,
    )
    if not np.isfinite(found.images[0]).all():
        raise ExportFailed("The pipeline gives pictures with values that are no numbers.")


def _full_strength(pipe: Any) -> dict[str, float]:
    """Of pipelines that have one: less would leave nothing of a single step."""
    has = "strength" in inspect.signature(pipe.__call__).parameters
    return {"strength": 1.0} if has else {}


def _least_steps(pipe: Any) -> int:
    """Of PixArt two: a single one it takes to be of a model that was distilled to that."""
    return 2 if type(pipe).__name__.startswith("PixArt") else 1


def _gray(size: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (size, size), (120, 120, 120))


def _default_size(pipe: Any) -> int:
    """Width and height that the network was trained with, in pixels."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    latents: Any = getattr(getattr(network, "config", None), "sample_size", None)
    if not isinstance(latents, int):  # Flux's network takes any size
        latents = getattr(pipe, "default_sample_size", 64)
    factor: int = getattr(pipe, "vae_scale_factor", 8)
    size = int(latents if latents > _MOST_LATENTS else latents * factor)  # PRX gives pixels
    return max(8, size - size % 8)


def _manifest(
    conversion: Conversion, pipe: Any, variant: str | None, small: int, precision: str
) -> dict[str, Any]:
    import torch

    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    outputs = [
        tensor("image_output", "BYTES"),
        tensor("step", "INT32"),
        tensor("steps", "INT32"),
    ]
    inputs, probe = _inputs(conversion.task, pipe, small)
    return exporting.base_manifest(
        conversion,
        backend="diffusion",
        engine="diffusers",
        precision=precision,
        libraries=("torch", "transformers", "diffusers"),
        inputs=inputs,
        outputs=outputs,
        max_batch_size=0,
        decoupled=True,
        probe=probe,
        diffusion={
            "model_folder": MODEL_FOLDER,
            "pipeline": type(pipe).__name__,
            "variant": variant,
            "default_size": _default_size(pipe),
            "smallest_size": small,
        },
        parameters=sum(p.numel() for module in modules for p in module.parameters()),
        dtype="float16" if variant == "fp16" else "float32",
    )


def _inputs(task: str, pipe: Any, small: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The manifest's inputs, and a smallest request."""
    steps = _least_steps(pipe)
    if task == "txt2img":
        parameters = {"width": small, "height": small, "steps": steps, "seed": 1}
        text = [tensor("text_input", "BYTES")]
        return text, {"inputs": {"text_input": "a"}, "parameters": parameters}
    png = io.BytesIO()
    _gray(small).save(png, "PNG")
    image = {"base64": base64.b64encode(png.getvalue()).decode()}
    return (
        [tensor("image_input", "BYTES"), tensor("text_input", "BYTES", optional=True)],
        {
            "inputs": {"image_input": image},
            "parameters": {"steps": steps, "seed": 1} | _full_strength(pipe),
        },
    )
