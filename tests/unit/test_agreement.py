"""When a lower precision may serve a text generator."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from converters.agreement import Agreement, agreement  # noqa: E402

pytestmark = pytest.mark.torch

seeds = st.integers(0, 2**31)


def some_scores(seed: int, positions: int = 6, words: int = 40) -> torch.Tensor:
    return torch.randn(positions, words, generator=torch.Generator().manual_seed(seed)) * 3


@given(seeds)
def test_the_same_scores_agree_wholly(seed: int) -> None:
    found = agreement([some_scores(seed)], [some_scores(seed)])
    assert found.min_cosine == pytest.approx(1)
    assert found.divergence == pytest.approx(0, abs=1e-12)
    assert found.same_token == 1
    assert found.refusal("bf16") is None


@given(seeds, st.floats(-1000, 1000))
def test_what_is_added_to_all_scores_of_a_position_changes_nothing(
    seed: int, offset: float
) -> None:
    scores = some_scores(seed)
    found = agreement([scores], [scores.double() + offset])
    assert found.min_cosine == pytest.approx(1)
    assert found.divergence == pytest.approx(0, abs=1e-9)


@given(seeds)
def test_a_common_part_of_all_scores_does_not_hide_that_the_rest_is_another(seed: int) -> None:
    one, other = some_scores(seed) - 1000, some_scores(seed + 1) - 1000
    found = agreement([one], [other])
    assert found.min_cosine < 0.9
    assert found.divergence > 0.1
    assert "cosine" in str(found.refusal("bf16"))


@given(seeds)
def test_only_where_fp32_has_decided_must_the_likeliest_token_be_the_same(seed: int) -> None:
    undecided = torch.zeros(4, 10)
    undecided[:, 0] = 0.5
    other = torch.zeros(4, 10)
    other[:, 1] = 0.5
    assert agreement([undecided], [other]).same_token == 1
    decided = undecided * 2
    assert agreement([decided], [other]).same_token == 0
    assert agreement([decided, some_scores(seed)], [decided, some_scores(seed)]).same_token == 1


def test_the_worst_text_counts() -> None:
    good, bad = some_scores(1), some_scores(2)
    found = agreement([good, bad], [good, some_scores(3)])
    assert found.min_cosine < 0.9
    assert agreement([bad, good], [some_scores(3), good]).min_cosine == found.min_cosine


def test_what_is_no_number_is_refused() -> None:
    broken = some_scores(1)
    broken[2, 3] = math.nan
    assert agreement([some_scores(1)], [broken]).refusal("bf16")
    assert agreement([some_scores(1), some_scores(1)], [broken, some_scores(1)]).refusal("bf16")


def test_tokens_that_the_model_rules_out_hide_no_others() -> None:
    one, other = some_scores(1), some_scores(2)
    for scores in (one, other):
        scores[:, :5] = torch.finfo(torch.float32).min
    assert agreement([one], [other]).min_cosine < 0.9


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (Agreement(0.999, 0.01, 0.99), True),
        (Agreement(0.9989, 0.0, 1.0), False),
        (Agreement(1.0, 0.011, 1.0), False),
        (Agreement(1.0, 0.0, 0.98), False),
        (Agreement(1.0, math.nan, 1.0), False),
    ],
)
def test_each_bound_refuses_alone(found: Agreement, passes: bool) -> None:
    assert (found.refusal("bf16") is None) is passes
