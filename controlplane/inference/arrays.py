"""Between plans and numpy: items to Triton's tensors, Triton's tensors to items' outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.lifecycle.health import NUMPY_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from controlplane.inference.tasks.plan import Item, Outputs, TensorValue

Array = np.ndarray[Any, Any]


def batch_of(items: Sequence[Item]) -> dict[str, Array]:
    """Tensors of several items, with a batch dimension in front."""
    return {name: np.stack([_array(item[name]) for item in items]) for name in items[0]}


def alone(item: Item) -> dict[str, Array]:
    """Tensors of one item, for models without a batch dimension."""
    return {name: _array(value) for name, value in item.items()}


def rows(outputs: Mapping[str, Array], count: int) -> list[Outputs]:
    """Outputs per item of a batch of `count`.

    Raises:
        ValueError: an output has another number of rows, or numbers that JSON has no form for.
    """
    _check_finite(outputs)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != count:
            raise ValueError(f"its output {name!r} has the shape {list(array.shape)}")
    return [{name: array[i].tolist() for name, array in outputs.items()} for i in range(count)]


def row(outputs: Mapping[str, Array]) -> Outputs:
    """Outputs of a model without a batch dimension.

    Raises:
        ValueError: as `rows`.
    """
    _check_finite(outputs)
    return {name: array.tolist() for name, array in outputs.items()}


def signature(item: Item) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What items of one batch have in common: their tensors' names and shapes."""
    return tuple((name, value.shape) for name, value in item.items())


def _array(value: TensorValue) -> Array:
    dtype = np.dtype(np.object_) if value.datatype == "BYTES" else NUMPY_TYPES[value.datatype]
    flat = np.empty(math.prod(value.shape), dtype=dtype)
    flat[:] = value.values
    return flat.reshape(value.shape)


def _check_finite(outputs: Mapping[str, Array]) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"its output {name!r} has values that are not finite (NaN, infinity), for which "
                "JSON has no form; ask over Triton's protocol to see them"
            )
