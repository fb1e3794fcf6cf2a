"""Sub-batches: every text once, none larger than the engine gains from, as cheap as can be."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from backends.engines import BatchCost
from backends.text_embedding.batching import Shapes, sub_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=80)
COSTS = st.builds(BatchCost, max_tokens=st.integers(1, 2000), call_tokens=st.integers(0, 300))
LANED = st.builds(
    BatchCost,
    max_tokens=st.integers(1, 2000),
    call_tokens=st.integers(0, 300),
    round_length=st.sampled_from([1, 16]),
    lanes=st.integers(2, 4),
)


def price(batches: list[list[int]], lengths: list[int], cost: BatchCost) -> int:
    """What the batches cost in all, in tokens."""
    return sum(
        cost.call_tokens + len(batch) * max(1, *(lengths[i] for i in batch)) for batch in batches
    )


@given(LENGTHS, COSTS | LANED)
def test_every_text_is_in_exactly_one_sub_batch(lengths: list[int], cost: BatchCost) -> None:
    batches = sub_batches(lengths, cost)
    assert all(batches)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))


@given(LENGTHS, COSTS)
def test_padded_tokens_stay_within_the_limit_unless_one_text_exceeds_it(
    lengths: list[int], cost: BatchCost
) -> None:
    for batch in sub_batches(lengths, cost):
        padded = len(batch) * max(max(1, lengths[i]) for i in batch)
        assert padded <= cost.max_tokens or len(batch) == 1


@given(LENGTHS, COSTS)
def test_longer_texts_come_first(lengths: list[int], cost: BatchCost) -> None:
    batches = sub_batches(lengths, cost)
    for longer, shorter in itertools.pairwise(batches):
        assert min(lengths[i] for i in longer) >= max(lengths[i] for i in shorter)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), COSTS)
def test_no_other_cut_of_the_sorted_texts_is_cheaper(lengths: list[int], cost: BatchCost) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    prices = []
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        ends = [0, *(i for i, cut in enumerate(cuts, 1) if cut), len(order)]
        parts = [order[a:b] for a, b in itertools.pairwise(ends)]
        if all(len(p) == 1 or len(p) * lengths[p[-1]] <= cost.max_tokens for p in parts):
            prices.append(price(parts, lengths, cost))
    assert price(sub_batches(lengths, cost), lengths, cost) == min(prices)


@given(LENGTHS, LANED)
def test_no_lane_gets_more_than_its_share_unless_by_one_text(
    lengths: list[int], cost: BatchCost
) -> None:
    whole = sum(cost.padded(length) for length in lengths)
    sizes = []
    for batch in sub_batches(lengths, cost):
        sizes.append(len(batch) * max(cost.padded(lengths[i]) for i in batch))
        assert sizes[-1] <= min(cost.max_tokens, -(-whole // cost.lanes)) or len(batch) == 1
    assert sizes == sorted(sizes, reverse=True)


def test_a_batch_is_shared_out_among_lanes() -> None:
    cost = BatchCost(max_tokens=320, call_tokens=32, round_length=16, lanes=2)
    assert [len(batch) for batch in sub_batches([17] * 8, cost)] == [4, 4]
    assert sub_batches([17], cost) == [[0]]


def test_texts_of_one_length_share_as_few_runs_as_the_limit_allows() -> None:
    batches = sub_batches([17] * 32, BatchCost(max_tokens=640, call_tokens=32))
    assert [len(batch) for batch in batches] == [32]


def test_a_long_text_does_not_share_a_run_with_short_ones() -> None:
    batches = sub_batches([5, 250, 6, 5], BatchCost(max_tokens=2000, call_tokens=32))
    assert batches == [[1], [0, 3, 2]]


def test_nothing_gives_nothing() -> None:
    assert sub_batches([], BatchCost(max_tokens=640, call_tokens=32)) == []


def test_lengths_are_rounded_as_the_engine_wants_and_counted_so() -> None:
    cost = BatchCost(max_tokens=640, call_tokens=32, round_length=16)
    assert [cost.padded(n) for n in (0, 1, 16, 17, 250)] == [16, 16, 16, 32, 256]
    assert BatchCost(640, 32).padded(0) == 1
    # 20 texts of 32 padded tokens fill a run; unrounded, 37 would.
    assert max(len(batch) for batch in sub_batches([17] * 40, cost)) == 20


def test_shapes_that_come_again_run_as_they_are() -> None:
    cost, shapes = BatchCost(640, 32, round_length=16), Shapes()
    lengths = [shapes.length(8, 17, cost) for _ in range(6)]
    assert lengths == [32, 32, 32, 32, 17, 17]
    for n in range(100):  # mixed ones are forgotten again
        assert shapes.length(n + 1, 20, cost) == 32
    assert shapes.length(8, 17, cost) == 32
