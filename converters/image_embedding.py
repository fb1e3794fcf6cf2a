"""Task img2embed: an image model becomes an artefact that gives vectors of pictures.

CLIP and its kin (two towers in one space) also give vectors of texts, by a second graph.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters.conversion import fresh_output
from converters.errors import ExportFailed
from converters.exporting import base_manifest, tensor
from converters.image_repository import (
    ImageRepository,
    read_image_repository,
    refuse_pictures_of_any_shape,
)
from converters.manifest import MAX_BATCH_SIZE, write_manifest
from converters.text_embedding import require_space
from converters.weights import find_weights

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from converters.engines import Chosen, Graph
    from converters.image_export import Exported
    from converters.text_tower import TextSide
    from converters.towers import ImageModel

IMAGE_FOLDER, TEXT_FOLDER = "image", "text"
OUTPUT_NAME = "features"
# Of vision transformers; what runs of others cost is estimated by it.
_USUAL_PATCH = 16


@dataclass(frozen=True)
class _Part:
    """One tower's part of the manifest."""

    section: dict[str, Any]
    parity: dict[str, Any]
    dimension: int
    exporter: str
    chosen: Chosen


def convert(conversion: Conversion) -> dict[str, Any]:
    """Convert `conversion.source`; the manifest is returned.

    Raises:
        ConversionError: its subclass tells why; the output is gone then, unless it existed before.
    """
    repository = read_image_repository(conversion.source)
    refuse_pictures_of_any_shape(repository)
    weights = find_weights(repository.folder, allow_pickle=conversion.allow_pickle)
    require_space(conversion.output, weights)
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        return _convert(conversion, repository, weights)


def _convert(conversion: Conversion, repository: ImageRepository, weights: Any) -> dict[str, Any]:
    import torch

    from converters import towers

    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    folder, trusted = repository.folder, conversion.trusted
    config = towers.load_config(folder, trusted=trusted)
    model = towers.load_image_model(folder, config, weights, trusted=trusted)
    image = _image_part(conversion, repository, model)
    # The same engine for both: the stub imports one only.
    engine = conversion.engine or image.chosen.engine
    text = _text_part(conversion, repository, model, engine) if model.takes_text else None
    if text is not None and text.dimension != image.dimension:
        raise ExportFailed(
            f"Vectors of texts have {text.dimension} components, those of pictures "
            f"{image.dimension}: they do not share a space."
        )
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "dtype": weights.dtype or "unknown",
    }
    conversion.events.progress("write", 0.0, "writing the manifest")
    manifest = _manifest(conversion, repository, image, text) | facts
    complete = write_manifest(conversion.output, manifest)
    conversion.events.progress("write", 1.0, "artefact complete")
    return complete


def _image_part(
    conversion: Conversion, repository: ImageRepository, image_model: ImageModel
) -> _Part:
    import torch

    from converters import image_export, image_processing, onnx, towers

    processor = image_processing.load_processor(repository.folder)
    section = image_processing.preprocessing_section(processor)
    pictures = image_processing.check_pictures()
    conversion.events.progress("load", 0.8, "PyTorch embeds the test pictures")
    reference = image_processing.reference_pixels(processor, pictures)
    served = image_processing.backend_pixels(section, pictures)
    pixels_differ = image_processing.require_equal(reference, served)
    tower = towers.ImageTower(image_model, normalize=repository.normalize).eval()
    check = image_export.PictureCheck(tower, reference, served)
    graph = onnx.Graph(
        module=tower,
        example=(torch.from_numpy(served[:2].copy()),),
        inputs={towers.PIXELS: {0: "batch"}},
        outputs={OUTPUT_NAME: {0: "batch"}},
    )
    done = image_export.export_until_it_holds(
        graph,
        conversion.output / IMAGE_FOLDER,
        lambda file: check.compare(file, conversion.threads),
        conversion.events,
        "the image tower",
    )
    file = conversion.output / IMAGE_FOLDER / onnx.MODEL_FILE
    graph_facts = check.graph({"onnx": file}, done.inputs, OUTPUT_NAME)
    chosen = _choose(conversion, graph_facts, conversion.engine)
    height, width = section["size"]
    patch = patch_size(image_model.model.config)
    return _Part(
        section={
            "model_file": f"{IMAGE_FOLDER}/{onnx.MODEL_FILE}",
            "input_name": done.inputs[0],
            "output_name": OUTPUT_NAME,
            "vector": image_model.output,
            "tokens": max(1, height // patch) * max(1, width // patch) + 1,
            "preprocessing": section,
        },
        parity=image_export.figures(done.parity, "images") | {"pixels": pixels_differ},
        dimension=check.dimension,
        exporter=done.exporter,
        chosen=chosen,
    )


def _choose(conversion: Conversion, graph: Graph, engine: str | None) -> Chosen:
    from converters.engines import choose

    return choose(
        graph,
        engine=engine,
        precision=conversion.precision,
        progress=lambda share, what: conversion.events.progress("verify", share, what),
    )


def patch_size(config: Any) -> int:
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    return patch if isinstance(patch, int) and patch > 0 else _USUAL_PATCH


def _text_part(
    conversion: Conversion, repository: ImageRepository, image_model: ImageModel, engine: str
) -> _Part:
    from converters import image_export, onnx
    from converters.text_tower import load_text_side
    from converters.tokenization import TOKENIZER_FILE
    from converters.verify import Check

    folder = conversion.output / TEXT_FOLDER
    folder.mkdir()
    side = load_text_side(repository, image_model.model, folder)
    check = Check(side.tower, folder / TOKENIZER_FILE, side.tokenization)  # type: ignore[arg-type]
    done = image_export.export_until_it_holds(
        _text_graph(side),
        folder,
        lambda file: check.compare(file, threads=conversion.threads, progress=lambda _: None),
        conversion.events,
        "the text tower",
    )
    graph = check.graph({"onnx": folder / onnx.MODEL_FILE}, done.inputs, OUTPUT_NAME)
    chosen = _choose(conversion, graph, engine)
    return _Part(
        section={
            "engine": chosen.engine,
            "precision": chosen.precision,
            "candidates": chosen.table,
            "model_file": f"{TEXT_FOLDER}/{onnx.MODEL_FILE}",
            "tokenizer_file": f"{TEXT_FOLDER}/{TOKENIZER_FILE}",
            "output_names": [OUTPUT_NAME],
            **_token_facts(side, done),
        },
        parity=image_export.figures(done.parity, "texts"),
        dimension=check.dimension,
        exporter=done.exporter,
        chosen=chosen,
    )


def _text_graph(side: TextSide) -> Any:
    from converters import onnx

    tokens = side.tokenization
    return onnx.Graph(
        module=side.tower,
        example=onnx.text_example(len(tokens.input_names), pads_left=tokens.padding_side == "left"),
        inputs={name: {0: "batch", 1: "sequence"} for name in tokens.input_names},
        outputs={OUTPUT_NAME: {0: "batch"}},
    )


def _token_facts(side: TextSide, done: Exported) -> dict[str, Any]:
    tokens = side.tokenization
    return {
        "input_names": list(done.inputs),
        "max_seq_length": tokens.max_seq_length,
        "do_lower_case": tokens.do_lower_case,
        "pad_token_id": tokens.pad_token_id,
        "pad_token_type_id": tokens.pad_token_type_id,
        "padding_side": tokens.padding_side,
        "truncation_side": tokens.truncation_side,
    }


def _manifest(
    conversion: Conversion, repository: ImageRepository, image: _Part, text: _Part | None
) -> dict[str, Any]:
    from converters import onnx

    names = ["image_input"] if text is None else ["image_input", "text_input"]
    exporters = {"exporter": image.exporter}
    exporters |= {} if text is None else {"text_exporter": text.exporter}
    return base_manifest(
        conversion,
        backend="image_embedding",
        engine=image.chosen.engine,
        precision=image.chosen.precision,
        libraries=("torch", "transformers", "onnx"),
        inputs=[tensor(name, "BYTES", optional=len(names) > 1) for name in names],
        outputs=[tensor("embedding", "FP32", (image.dimension,))],
        max_batch_size=MAX_BATCH_SIZE,
        probe={"inputs": {"image_input": {"base64": tiny_png()}}},
        image_embedding={
            "dimension": image.dimension,
            "normalized": repository.normalize,
            "image": image.section,
            "text": None if text is None else text.section,
        },
        parity={"reference": "pytorch fp32", **image.parity}
        | ({} if text is None else {"text": text.parity}),
        candidates=image.chosen.table,
        converter={"opset": onnx.OPSET, **exporters},
    )


def tiny_png() -> str:
    """A picture of 2 x 2 pixels, base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (90, 120, 150)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
