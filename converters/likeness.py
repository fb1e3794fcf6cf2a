"""How alike two computations of the same vectors are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_TINY = 1e-30  # instead of 0 in a division


def cosines(expected: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row of two arrays `[rows, …]` of one shape, the rest flattened.

    A row of zeros (a text without tokens, say) has no direction: it equals another such.
    NaN and infinity give NaN.
    """
    a = expected.reshape(len(expected), -1).astype(np.float64)
    b = found.reshape(len(found), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, _TINY))


def min_cosine(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """The worst cosine of all rows of all outputs; NaN when one is missing or of another shape,
    or holds what is no number."""
    worst = 1.0
    for name, array in expected.items():
        other = found.get(name)
        if other is None or other.shape != array.shape:
            return float("nan")
        # min() of Python keeps or loses a NaN by its place.
        worst = float(np.min([worst, *cosines(array, other)]))
    return worst
