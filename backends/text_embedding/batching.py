"""Cutting texts of mixed lengths into sub-batches, so that short ones do not pay for long ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.engines import BatchCost


# A shape that came so often, among so many that came last, is worth kernels of its own: some
# tens of milliseconds once, instead of up to twice the tokens each time.
_REGULAR = 4
_REMEMBERED = 64


class Shapes:
    """Which shapes come again and again, for engines to which every new one is a cost.

    Texts of one length, or batches of one size, give few shapes: these run as they are. Mixed ones
    give thousands, and are padded to few.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], int] = {}  # the one that came last is last

    def length(self, rows: int, longest: int, cost: BatchCost) -> int:
        """Tokens to pad a sub-batch of that shape to."""
        shape = (rows, longest)
        count = self._seen.pop(shape, 0) + 1
        self._seen[shape] = count
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return longest if count > _REGULAR else cost.padded(longest)


def sub_batches(lengths: Sequence[int], cost: BatchCost) -> list[list[int]]:
    """Partition the indices of `lengths` into the cheapest sub-batches, longest texts first.

    A sub-batch of `n` texts padded to `L` tokens costs `cost.call_tokens + n x L`, and may hold
    `cost.max_tokens` padded tokens; only a single longer text may exceed that. `L` is the longest
    text's length as `cost.padded` rounds it. Sorting makes
    neighbours alike; dynamic programming over the sorted lengths then finds the cuts of least
    total cost: few calls for texts of one length, little padding for mixed ones. Longest first,
    because the engine's memory arena then grows once.

    For an engine with lanes none holds more than one lane's share of all tokens, so that no lane
    is idle; the costliest come first, so that the lanes end at about the same time.

    Args:
        lengths: tokens per text; 0 counts as 1, as an empty text is padded to one token.
        cost: the engine's.

    Returns:
        Lists of indices; every index once.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ordered = [cost.padded(lengths[index]) for index in order]
    limit = cost.max_tokens
    if cost.lanes > 1:
        limit = min(limit, -(-sum(ordered) // cost.lanes))
    starts = _cheapest_starts(ordered, limit, cost.call_tokens)
    batches = []
    end = len(order)
    while end > 0:
        batches.append((order[starts[end] : end], (end - starts[end]) * ordered[end - 1]))
        end = starts[end]
    if cost.lanes > 1:
        batches.sort(key=lambda batch: -batch[1])
    return [indices for indices, _ in batches]


def _cheapest_starts(ordered: Sequence[int], max_tokens: int, call_tokens: int) -> list[int]:
    """For each end of a prefix of the ascending lengths: where its last sub-batch begins."""
    costs = [0]
    starts = [0]
    for end, longest in enumerate(ordered, start=1):
        first = max(0, end - max(1, max_tokens // longest))
        best, start = min(
            (costs[start] + call_tokens + (end - start) * longest, start)
            for start in range(first, end)
        )
        costs.append(best)
        starts.append(start)
    return starts
