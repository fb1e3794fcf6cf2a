"""Finds a model's weight files and checks them before anything heavy is imported."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from converters.errors import ArtifactNotAccessible, UnsafeWeights
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from pathlib import Path

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Weights:
    """Weight files of one folder.

    Attributes:
        safe: safetensors; False for pickles.
        elements: how many numbers they hold; for pickles an upper bound.
        dtype: what most of them are stored as, in torch's words; None when unknown.
    """

    files: tuple[Path, ...]
    safe: bool
    elements: int
    dtype: str | None

    @property
    def names(self) -> str:
        """The first files' names, for messages."""
        return ", ".join(file.name for file in self.files[:2])


def find_weights(folder: Path, *, allow_pickle: bool) -> Weights:
    """The weights that transformers would load: safetensors before pickles, shards by index.

    Raises:
        ArtifactNotAccessible: none there, a shard missing, or a safetensors file damaged.
        UnsafeWeights: only pickles, and they are not allowed.
    """
    safe = _listed(folder, "model.safetensors")
    if safe:
        return _read_headers(safe)
    pickles = _listed(folder, "pytorch_model.bin")
    if not pickles:
        raise ArtifactNotAccessible(
            f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin."
        )
    if not allow_pickle:
        raise UnsafeWeights(
            f"{folder.name}/{pickles[0].name} is a pickle, which can run code when it is read; "
            "use a revision with safetensors, or trust this source by allowing pickles."
        )
    # Two bytes is the smallest number that is stored as a pickle.
    return Weights(pickles, False, sum(file.stat().st_size for file in pickles) // 2, None)


def _listed(folder: Path, name: str) -> tuple[Path, ...]:
    if (folder / name).is_file():
        return (folder / name,)
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return ()
    files = tuple(folder / shard for shard in _shards(index))
    for file in files:
        if not file.is_file() or file.parent != folder:
            raise ArtifactNotAccessible(f"{file.name}, listed in {index.name}, is missing.")
    return files


def _shards(index: Path) -> list[str]:
    try:
        return sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
    except (TypeError, KeyError, AttributeError):
        raise ArtifactNotAccessible(f"{index.name} is not an index of weight files.") from None


def _read_headers(files: tuple[Path, ...]) -> Weights:
    elements: Counter[str] = Counter()
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping, it has only keys()
                    view = tensors.get_slice(name)
                    elements[view.get_dtype()] += prod(view.get_shape())
        except (SafetensorError, OSError) as error:
            raise ArtifactNotAccessible(f"{file.name} is damaged: {error}.") from error
    stored = [dtype for dtype, _ in elements.most_common() if dtype in _DTYPES]
    dtype = _DTYPES[stored[0]] if stored else None
    return Weights(files, True, sum(elements.values()), dtype)
