"""Keys and values of several requests side by side, so that one step computes them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Columns that a buffer grows by: copied once for so many tokens, and not for each.
_GROWTH = 64


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """One layer's keys and values [rows, heads, columns, size]; the last `length` are in use.

    It computes what `DynamicLayer` does, which copies everything for every token.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values, self.length = keys, values, length
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys = _widened(self.keys, self.length, end + _GROWTH)
            self.values = _widened(self.values, self.length, end + _GROWTH)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length


def _widened(states: torch.Tensor, length: int, columns: int) -> torch.Tensor:
    rows, heads, _, size = states.shape
    wide = states.new_zeros((rows, heads, columns, size))
    wide[:, :, :length] = states[:, :, :length]
    return wide


class Row:
    """Where one request's tokens lie: the last `length` columns of a row of a batch."""

    def __init__(self, batch: Batch, index: int, length: int) -> None:
        self.batch, self.index, self.length = batch, index, length


class Batch:
    """Requests that are computed together. Shorter ones are padded on the left, masked out."""

    def __init__(self, layers: list[_Layer], length: int) -> None:
        self._layers = layers
        self.length = length
        self.cache = Cache(layers=layers)

    @classmethod
    def alone(cls, cache: Any) -> Batch:
        """Of what transformers computed for the prompt of one request (`DynamicCache`)."""
        length = cache.get_seq_length()
        return cls([_Layer(layer.keys, layer.values, length) for layer in cache.layers], length)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        """Copy rows of other batches together and have them lie in this one."""
        length = max(row.length for row in rows)
        depth = len(rows[0].batch._layers)
        batch = cls([_gathered(rows, number, length) for number in range(depth)], length)
        for index, row in enumerate(rows):
            row.batch, row.index = batch, index
        return batch

    def rewind(self) -> None:
        """Forget what a step that failed has written."""
        for layer in self._layers:
            layer.length = self.length

    def is_exactly(self, rows: Sequence[Row]) -> bool:
        """Whether these are all its rows, in its order."""
        mine = all(row.batch is self and row.index == index for index, row in enumerate(rows))
        return mine and len(rows) == self._layers[0].keys.shape[0]

    def layer(self, number: int) -> _Layer:
        return self._layers[number]


def _gathered(rows: Sequence[Row], number: int, length: int) -> _Layer:
    first = rows[0].batch.layer(number)
    parts = []
    for name in ("keys", "values"):
        like = getattr(first, name)
        # Zeros: what is masked out takes part in the sums, times zero.
        shape = (len(rows), like.shape[1], length + _GROWTH, like.shape[3])
        together = like.new_zeros(shape)
        for index, row in enumerate(rows):
            own = getattr(row.batch.layer(number), name)[row.index]
            end = row.batch.length
            together[index, :, length - row.length : length] = own[:, end - row.length : end]
        parts.append(together)
    return _Layer(parts[0], parts[1], length)
