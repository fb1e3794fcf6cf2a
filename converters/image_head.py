"""Image classifiers: loaded, exported, compared, as img2embed does it with towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from converters import image_export, image_processing, loading, onnx, text_head, towers
from converters.image_embedding import patch_size
from converters.weights import find_weights

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from converters.weights import Weights

_LOGITS = "logits"


class ImageHead(nn.Module):
    """Pixel values, FP32 [batch, 3, height, width], to logits, FP32 [batch, labels]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pixel_values, return_dict=True).logits
        return logits


@dataclass(frozen=True)
class LoadedImageHead:
    """A loaded classifier, ready to be exported."""

    head: ImageHead
    config: Any
    weights: Weights


def load(conversion: Conversion) -> LoadedImageHead:
    """Load the source's model.

    Raises:
        ConversionError: a file is missing or damaged, or the model is not supported.
    """
    import transformers

    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    weights = find_weights(conversion.source, allow_pickle=conversion.allow_pickle)
    text_head.require_space(conversion.output, weights)
    config = towers.load_config(conversion.source, trusted=conversion.trusted)
    kind = transformers.AutoModelForImageClassification
    model = loading.load_model(kind, conversion.source, config, weights, trusted=conversion.trusted)
    return LoadedImageHead(ImageHead(model).eval(), config, weights)


def export(
    loaded: LoadedImageHead, conversion: Conversion
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the graph that agrees with PyTorch, and choose its engine.

    Returns:
        The image's part of the manifest's section, and what the manifest says of the graph.

    Raises:
        ConversionError: as img2embed's.
    """
    processor = image_processing.load_processor(conversion.source)
    section = image_processing.preprocessing_section(processor)
    pictures = image_processing.check_pictures()
    reference = image_processing.reference_pixels(processor, pictures)
    served = image_processing.backend_pixels(section, pictures)
    image_processing.require_equal(reference, served)
    check = image_export.PictureCheck(loaded.head, reference, served)
    graph = onnx.Graph(
        module=loaded.head,
        example=(torch.from_numpy(served[:2].copy()),),
        inputs={towers.PIXELS: {0: "batch"}},
        outputs={_LOGITS: {0: "batch"}},
    )
    done = image_export.export_until_it_holds(
        graph,
        conversion.output,
        lambda file: check.compare(file, conversion.threads),
        conversion.events,
        "the classifier",
    )
    files = {"onnx": conversion.output / onnx.MODEL_FILE}
    chosen = text_head.choose_engine(conversion, check.graph(files, done.inputs, _LOGITS))
    height, width = section["size"]
    patch = patch_size(loaded.config)
    image = {
        "model_file": chosen.model_file.name,
        "input_name": done.inputs[0],
        "output_name": _LOGITS,
        "tokens": max(1, height // patch) * max(1, width // patch) + 1,
        "preprocessing": section,
    }
    facts = {
        "engine": chosen.engine,
        "precision": chosen.precision,
        "parity": {"reference": "pytorch fp32", **image_export.figures(done.parity, "images")},
        "candidates": chosen.table,
        "parameters": sum(parameter.numel() for parameter in loaded.head.parameters()),
        "dtype": loaded.weights.dtype or "unknown",
        "converter": {"opset": onnx.OPSET, "exporter": done.exporter},
    }
    return image, facts
