"""Which span of a context is the answer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.question_answering.spans import best_span

LOGITS = st.floats(-50, 50, width=32)


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = draw(st.integers(3, 12))
    start, end = (np.array(draw(st.lists(LOGITS, min_size=size, max_size=size))) for _ in "ab")
    context = np.zeros(size, bool)
    first = draw(st.integers(1, size - 1))
    context[first : draw(st.integers(first + 1, size))] = True
    return start, end, context


@given(windows(), st.integers(1, 5))
def test_it_is_the_likeliest_of_all_allowed_spans(
    window: tuple[np.ndarray, np.ndarray, np.ndarray], longest: int
) -> None:
    start, end, context = window
    span = best_span(start, end, context, first_is_special=True, longest=longest)
    assert span is not None
    assert context[span.first]
    assert context[span.last]
    assert 0 <= span.last - span.first < longest
    counted = context.copy()
    counted[0] = True
    weights = [np.exp(x - x[counted].max()) * counted for x in (start, end)]
    shares = [weight / weight.sum() for weight in weights]
    best = max(
        shares[0][i] * shares[1][j]
        for i in np.flatnonzero(context)
        for j in np.flatnonzero(context)
        if i <= j < i + longest
    )
    assert np.isclose(span.score, best, rtol=1e-9, atol=1e-300)
    assert np.isclose(span.no_answer, shares[0][0] * shares[1][0], rtol=1e-9, atol=1e-300)


def test_no_context_no_answer() -> None:
    nothing = np.zeros(4, bool)
    assert best_span(np.ones(4), np.ones(4), nothing, first_is_special=True, longest=3) is None
