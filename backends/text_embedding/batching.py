"""Cutting texts of mixed lengths into sub-batches, so that short ones do not pay for long ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.engines import BatchCost


def sub_batches(lengths: Sequence[int], cost: BatchCost) -> list[list[int]]:
    """Partition the indices of `lengths` into the cheapest sub-batches, longest texts first.

    A sub-batch of `n` texts padded to `L` tokens costs `cost.call_tokens + n x L`, and may hold
    `cost.max_tokens` padded tokens; only a single longer text may exceed that. `L` is the longest
    text's length as `cost.padded` rounds it. Sorting makes
    neighbours alike; dynamic programming over the sorted lengths then finds the cuts of least
    total cost: few calls for texts of one length, little padding for mixed ones. Longest first,
    because the engine's memory arena then grows once.

    Args:
        lengths: tokens per text; 0 counts as 1, as an empty text is padded to one token.
        cost: the engine's.

    Returns:
        Lists of indices; every index once.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ordered = [cost.padded(lengths[index]) for index in order]
    starts = _cheapest_starts(ordered, cost)
    batches = []
    end = len(order)
    while end > 0:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches


def _cheapest_starts(ordered: Sequence[int], cost: BatchCost) -> list[int]:
    """For each end of a prefix of the ascending lengths: where its last sub-batch begins."""
    costs = [0]
    starts = [0]
    for end, longest in enumerate(ordered, start=1):
        first = max(0, end - max(1, cost.max_tokens // longest))
        best, start = min(
            (costs[start] + cost.call_tokens + (end - start) * longest, start)
            for start in range(first, end)
        )
        costs.append(best)
        starts.append(start)
    return starts
