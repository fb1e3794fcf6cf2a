"""Exports a sentence encoder to ONNX: dynamic batch and sequence, one file or external weights."""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING

import onnx
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from converters.sentence_layers import SentenceEncoder

OPSET = 18
OUTPUT_NAME = "sentence_embedding"  # `embedding` collides with a module name in the dynamo exporter
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"

# A protobuf message ends at 2 GiB; the graph itself needs some of it.
EXTERNAL_DATA_ABOVE = 1_900_000_000

# TorchScript first: it takes 0.2 s instead of 3-5 s and ONNX Runtime ran its graphs up to 20 %
# faster. It is deprecated and bakes in what Python decides while tracing, so its result is only
# taken when it passes verification; else the torch.export-based exporter does the work.
EXPORTERS = ("torchscript", "dynamo")


def export(
    encoder: SentenceEncoder,
    input_names: Sequence[str],
    output: Path,
    *,
    exporter: str,
    pads_left: bool,
    external_data_above: int = EXTERNAL_DATA_ABOVE,
) -> tuple[str, ...]:
    """Write `output`/model.onnx, and model.onnx.data beside it when the weights are large.

    Returns the names of the graph's inputs: exporters drop those that do not change the output.

    Args:
        input_names: the encoder's first inputs, in order; they name the graph's inputs.
        exporter: one of `EXPORTERS`.
        external_data_above: bytes of weights from which they go into a file of their own.

    Raises:
        Exception: whatever torch raises when it cannot export the model.
    """
    scratch = output / ".export"
    scratch.mkdir()
    try:
        run = _export_torchscript if exporter == "torchscript" else _export_dynamo
        with torch.no_grad(), warnings.catch_warnings():
            # Deprecation of the exporter and remarks on what tracing cannot see: whether they
            # matter is decided by verification.
            warnings.simplefilter("ignore")
            run(encoder, input_names, example(len(input_names), pads_left), scratch / MODEL_FILE)
        return _write(scratch / MODEL_FILE, output, external_data_above)
    finally:
        shutil.rmtree(scratch)


def remove(output: Path) -> None:
    """Take an export away again."""
    for file in (output / MODEL_FILE, output / WEIGHTS_FILE):
        file.unlink(missing_ok=True)


def example(count: int, pads_left: bool) -> tuple[torch.Tensor, ...]:
    """Two texts of 7 and 5 tokens: no dimension is 1 and some of the mask is 0, since tracing
    takes either for a constant."""
    ids = torch.arange(14).reshape(2, 7) % 11 + 4
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    if pads_left:
        mask = mask.flip(1)
    return (ids, mask, torch.zeros(2, 7, dtype=torch.int64))[:count]


def _export_torchscript(
    encoder: SentenceEncoder, names: Sequence[str], example: tuple[torch.Tensor, ...], path: Path
) -> None:
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    torch.onnx.export(
        encoder,
        example,
        path,
        input_names=list(names),
        output_names=[OUTPUT_NAME],
        dynamic_axes=axes | {OUTPUT_NAME: {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )


def _export_dynamo(
    encoder: SentenceEncoder, names: Sequence[str], example: tuple[torch.Tensor, ...], path: Path
) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        encoder,
        example,
        input_names=list(names),
        output_names=[OUTPUT_NAME],
        dynamic_shapes=tuple({0: dynamic, 1: dynamic} for _ in names),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)


def _write(exported: Path, output: Path, external_data_above: int) -> tuple[str, ...]:
    model = onnx.load(exported)
    _strip(model)
    inputs = tuple(value.name for value in model.graph.input)
    remove(output)  # an earlier exporter's, which failed verification
    weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if weights <= external_data_above:
        onnx.save_model(model, output / MODEL_FILE)
        return inputs
    onnx.save_model(
        model,
        output / MODEL_FILE,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS_FILE,
        size_threshold=1024,
    )
    # onnx writes it for this user alone; Triton may run as another.
    (output / WEIGHTS_FILE).chmod(0o644)
    return inputs


def _strip(model: onnx.ModelProto) -> None:
    """Take out what names this machine (stack traces with paths): same input, same bytes."""
    model.doc_string = ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
