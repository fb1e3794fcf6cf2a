"""int8 graphs, as the engines want them. Products with constant weights are quantised, the weights
to int8 with a scale per output channel.

For OpenVINO that is all (`quantize_weights`): it reads the weights as int8 and multiplies in bf16,
or, where the processor has none, makes the activations int8 itself, with a scale per token and 32
channels.

For ONNX Runtime (`quantize`) activations become uint8 as they come, with one scale per run
(onnxruntime.quantization, dynamic), outliers smoothed away before: a few channels of a
transformer's activations are tens of times larger than the rest and would take all 256 steps for
themselves. SmoothQuant (Xiao et al., 2023, arXiv:2211.10438) moves them into the weights, which
have a scale per channel: with X the activations that calibration saw and W the weights,

    s_k = max|X_k|^a / max|W_k|^(1-a),    X W = (X / s) (s W)
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_LEAST = 1e-5  # for channels that are always 0
_LARGEST = 127  # of int8, the same on both sides of 0


def quantize_weights(model_file: Path, target: Path) -> None:
    """Write a version of an ONNX file whose weights of products are int8, dequantised in the graph.

    Raises:
        ValueError: the graph has no product with constant weights.
        Exception: whatever onnx raises for a graph that it cannot write.
    """
    model = onnx.load(model_file)
    products = _products(model)
    if not products:
        raise ValueError("The graph multiplies with no constant weights.")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    known: set[str] = set()
    for node in products:
        name = node.input[1]
        if name not in known:
            known.add(name)
            _add_int8(model, node, numpy_helper.to_array(weights[name]))
        node.input[1] = f"{name}_dequantised"
    read = {name for node in model.graph.node for name in node.input}
    for name in known - read:  # else somebody else reads it too
        model.graph.initializer.remove(weights[name])
    onnx.save_model(model, target)


def _add_int8(model: onnx.ModelProto, reader: Any, matrix: NDArray[np.float32]) -> None:
    """Put int8 weights, their scales and what multiplies them in front of a node."""
    name = reader.input[1]
    scale = np.maximum(np.abs(matrix).max(axis=0) / _LARGEST, np.finfo(np.float32).tiny)
    steps = np.clip(np.rint(matrix / scale), -_LARGEST, _LARGEST).astype(np.int8)
    parts = {f"{name}_int8": steps, f"{name}_scale": scale.astype(np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in parts.items())
    out = f"{name}_dequantised"
    node = helper.make_node("DequantizeLinear", [*parts], [out], out, axis=1)
    model.graph.node.insert(list(model.graph.node).index(reader), node)


def quantize(
    model_file: Path,
    target: Path,
    calibration: Sequence[Mapping[str, NDArray[Any]]],
    strength: float,
) -> None:
    """Write an int8 version of an ONNX file.

    Args:
        calibration: inputs of the graph; what they make of the activations decides the smoothing.
        strength: of the smoothing, 0 to 1.

    Raises:
        ValueError: the graph has no product with constant weights.
        Exception: whatever onnxruntime.quantization raises for a graph it cannot take.
    """
    model = onnx.load(model_file)
    products = _products(model)
    if not products:
        raise ValueError("The graph multiplies with no constant weights.")
    _smooth(model, products, _largest(model_file, products, calibration), strength)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            model,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[node.name for node in products],
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It warns of preprocessing that would change nothing here."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _products(model: onnx.ModelProto) -> list[Any]:
    """The nodes that multiply activations `[…, k]` with constants `[k, n]`."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2
    ]


def _largest(
    model_file: Path, products: Sequence[Any], calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel of each activation, over all calibration inputs."""
    import onnxruntime

    names = sorted({node.input[0] for node in products})
    model = onnx.load(model_file)
    known = {value.name for value in model.graph.output}
    extra = [helper.make_empty_tensor_value_info(name) for name in names if name not in known]
    model.graph.output.extend(extra)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    largest: dict[str, NDArray[np.float32]] = {}
    for inputs in calibration:
        for name, found in zip(names, session.run(names, dict(inputs)), strict=True):
            channels = np.abs(found.reshape(-1, found.shape[-1])).max(axis=0)
            largest[name] = np.maximum(largest.get(name, channels), channels)
    return largest


def _smooth(
    model: onnx.ModelProto,
    products: Sequence[Any],
    largest: Mapping[str, NDArray[np.float32]],
    strength: float,
) -> None:
    """Divide activations by s and multiply the weights with it, in place."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in products:
        readers.setdefault(node.input[0], []).append(node)
    for name, nodes in readers.items():
        matrices = [numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        widest = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
        scale = _scale(largest[name], widest, strength)
        _divide(model, name, nodes, scale)
        for node, matrix in zip(nodes, matrices, strict=True):
            scaled = np.ascontiguousarray(matrix * scale[:, None])
            # One of its own: others may read the same weights without the division.
            own = f"{node.name}_smoothed_weight"
            model.graph.initializer.append(numpy_helper.from_array(scaled, own))
            node.input[1] = own


def _scale(
    activations: NDArray[np.float32], weights: NDArray[np.float32], strength: float
) -> NDArray[np.float32]:
    above = np.maximum(activations, _LEAST) ** strength
    below = np.maximum(weights, _LEAST) ** (1 - strength)
    return np.maximum(above / below, _LEAST).astype(np.float32)


def _divide(
    model: onnx.ModelProto, name: str, nodes: Sequence[Any], scale: NDArray[np.float32]
) -> None:
    """Have these nodes read the tensor divided by `scale`."""
    divided = f"{name}_smoothed"
    factor = numpy_helper.from_array((1 / scale).astype(np.float32), f"{divided}_factor")
    model.graph.initializer.append(factor)
    first = min(list(model.graph.node).index(node) for node in nodes)
    model.graph.node.insert(first, helper.make_node("Mul", [name, factor.name], [divided], divided))
    for node in nodes:
        node.input[0] = divided
