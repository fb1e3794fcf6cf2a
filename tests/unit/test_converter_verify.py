"""The gate between an export and its use, and the texts that go through it."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from converters.verify import Parity, measure, verification_batches

pytestmark = pytest.mark.torch


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_equal_vectors_hold() -> None:
    parity = measure(vectors([0.6, 0.8], [1, 0]), vectors([0.6, 0.8], [1, 0]))
    assert (parity.texts, parity.max_abs_diff, parity.holds) == (2, 0.0, True)
    assert parity.min_cosine == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_no_number_fails(bad: float, side: int) -> None:
    pair = [vectors([0.6, 0.8]), vectors([0.6, 0.8])]
    pair[side][0, 0] = bad
    assert not measure(*pair).holds


def test_shapes_that_differ_fail() -> None:
    assert not measure(vectors([1, 0]), vectors([1, 0, 0])).holds
    assert not measure(vectors([1, 0]), vectors([1, 0], [1, 0])).holds


def test_one_bad_text_among_many_fails() -> None:
    expected, found = np.tile(vectors([0.6, 0.8]), (40, 1)), np.tile(vectors([0.6, 0.8]), (40, 1))
    found[17] = [0.6002, 0.7998]
    parity = measure(expected, found)
    assert parity.min_cosine > 0.9999
    assert parity.max_abs_diff == pytest.approx(2e-4, rel=1e-2)
    assert not parity.holds


def test_zero_vectors_are_equal_only_to_each_other() -> None:
    assert measure(vectors([0, 0]), vectors([0, 0])).holds
    assert not measure(vectors([0, 0]), vectors([1e-5, 0])).holds


def test_difference_is_relative_to_large_components() -> None:
    """float32 holds seven digits: 1e-4 absolute cannot be asked of components of 1000."""
    assert measure(vectors([1000, 0]), vectors([1000.05, 0])).holds
    assert not measure(vectors([1000, 0]), vectors([1000.2, 0])).holds
    assert measure(vectors([0.001, 0]), vectors([0.00105, 0])).scale == 1


def test_gate() -> None:
    assert Parity(1, 0.9999, 1e-4).holds
    assert not Parity(1, 0.99989, 0).holds
    assert not Parity(1, 1, 1.1e-4).holds


@pytest.mark.parametrize("limit", [8, 128, 512, 32_768])
def test_texts(limit: int) -> None:
    batches = verification_batches(limit)
    texts = [text for batch in batches for text in batch]
    assert len(set(texts)) == len(texts) == 39
    assert {len(batch) for batch in batches} == {1, 3, 4, 5, 8}
    assert "" in texts
    assert "😀" in texts
    longest = max(len(text.split()) for text in texts)
    assert longest > min(limit, 600)
    assert longest < 1500  # attention is quadratic
