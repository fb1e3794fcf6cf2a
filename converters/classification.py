"""Task classification: a sequence or image classifier becomes an ONNX graph that gives logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters import exporting
from converters.conversion import fresh_output
from converters.errors import ExportFailed
from converters.exporting import tensor
from converters.image_embedding import tiny_png
from converters.manifest import MAX_BATCH_SIZE, write_manifest
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.conversion import Conversion

_OUTPUTS = [tensor("label", "BYTES", (-1,)), tensor("score", "FP32", (-1,))]


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the task classification.

    Raises:
        ConversionError: its subclass tells why; `output` is gone then, unless it existed before.
    """
    architecture = _architecture(conversion)
    if architecture.endswith("ForSequenceClassification"):
        export = _text
    elif architecture.endswith("ForImageClassification"):
        export = _image
    else:
        raise ExportFailed(
            f"The architecture {architecture!r} is no classifier; one that ends in "
            "ForSequenceClassification or ForImageClassification is needed."
        )
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        return export(conversion)


def _architecture(conversion: Conversion) -> str:
    named = read_json(conversion.source / "config.json").get("architectures") or [""]
    return str(named[0])


def _text(conversion: Conversion) -> dict[str, Any]:
    from converters import text_head

    loaded = text_head.load(
        conversion, "AutoModelForSequenceClassification", {"logits": {0: "batch"}}
    )
    done = text_head.export(loaded, conversion)
    facts = exporting.graph_facts(
        done.accepted, done.chosen, loaded.parameters, loaded.weights.dtype
    )
    section = {"takes": "text"} | text_head.tokens_section(loaded, done) | labels(loaded.config)
    probe = {"inputs": {"text_input": "health check"}}
    inputs = [tensor("text_input", "BYTES"), tensor("text_pair_input", "BYTES", optional=True)]
    return _write(conversion, inputs, probe, section, facts)


def _image(conversion: Conversion) -> dict[str, Any]:
    from converters import image_head

    loaded = image_head.load(conversion)
    section, facts = image_head.export(loaded, conversion)
    section = {"takes": "image", "image": section} | labels(loaded.config)
    probe = {"inputs": {"image_input": {"base64": tiny_png()}}}
    return _write(conversion, [tensor("image_input", "BYTES")], probe, section, facts)


def _write(
    conversion: Conversion,
    inputs: list[dict[str, Any]],
    probe: dict[str, Any],
    section: dict[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    manifest = exporting.base_manifest(
        conversion,
        backend="classification",
        libraries=("torch", "transformers", "onnx"),
        inputs=inputs,
        outputs=_OUTPUTS,
        max_batch_size=MAX_BATCH_SIZE,
        probe=probe,
        classification=section,
        **facts,
    )
    conversion.events.progress("write", 0.0, "writing the manifest")
    return write_manifest(conversion.output, manifest)


def labels(config: Any) -> dict[str, Any]:
    """Labels in the order of the logits, and what makes scores of the logits.

    As transformers' pipelines choose (`pipelines/text_classification.py`, `postprocess`). A
    cross-encoder of sentence-transformers says itself what becomes of its one logit.
    """
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if config.problem_type == "regression" or (config.num_labels == 1 and _keeps_logit(config)):
        return {"labels": names, "activation": "none"}
    multiple = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return {"labels": names, "activation": "sigmoid" if multiple else "softmax"}


def _keeps_logit(config: Any) -> bool:
    """Whether sentence-transformers' CrossEncoder gives the logit itself (`activation_fn`)."""
    ours = getattr(config, "sentence_transformers", None)
    named = ours.get("activation_fn") if isinstance(ours, dict) else None
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    return str(named).endswith(".Identity")
