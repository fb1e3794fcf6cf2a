"""Task classification: a sequence or image classifier becomes an ONNX graph that gives logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters import exporting
from converters.conversion import fresh_output
from converters.errors import ExportFailed
from converters.exporting import tensor
from converters.manifest import MAX_BATCH_SIZE, write_manifest
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from converters.conversion import Conversion

_OUTPUTS = [tensor("label", "BYTES", (-1,)), tensor("score", "FP32", (-1,))]


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the task classification.

    Raises:
        ConversionError: its subclass tells why; `output` is gone then, unless it existed before.
    """
    architecture = _architecture(conversion)
    if not architecture.endswith("ForSequenceClassification"):
        raise ExportFailed(
            f"The architecture {architecture!r} is no classifier; one that ends in "
            "ForSequenceClassification is needed."
        )
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        return _text(conversion)


def _architecture(conversion: Conversion) -> str:
    named = read_json(conversion.source / "config.json").get("architectures") or [""]
    return str(named[0])


def _text(conversion: Conversion) -> dict[str, Any]:
    from converters import onnx, text_head

    loaded = text_head.load(
        conversion, "AutoModelForSequenceClassification", {"logits": {0: "batch"}}
    )
    accepted, tokenization = text_head.export(loaded, conversion)
    facts = exporting.graph_facts(accepted, onnx.OPSET, loaded.parameters, loaded.weights.dtype)
    section = text_head.tokens_section(loaded, tokenization)
    section |= {"takes": "text"} | labels(loaded.config)
    manifest = exporting.base_manifest(
        conversion,
        backend="classification",
        engine="onnxruntime",
        precision="fp32",
        libraries=("torch", "transformers", "onnx"),
        inputs=[tensor("text_input", "BYTES")],
        outputs=_OUTPUTS,
        max_batch_size=MAX_BATCH_SIZE,
        probe={"inputs": {"text_input": "health check"}},
        classification=section,
        **facts,
    )
    conversion.events.progress("write", 0.0, "writing the manifest")
    return write_manifest(conversion.output, manifest)


def labels(config: Any) -> dict[str, Any]:
    """Labels in the order of the logits, and what makes scores of the logits.

    As transformers' pipelines choose (`pipelines/text_classification.py`, `postprocess`).
    """
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if config.problem_type == "regression":
        return {"labels": names, "activation": "none"}
    multiple = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return {"labels": names, "activation": "sigmoid" if multiple else "softmax"}
