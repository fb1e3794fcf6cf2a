"""How many parameters a model's weights have, and of which type: read from their headers alone."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING

from controlplane.registry.facts import FILE, Fact, Facts
from controlplane.registry.files import SAFE_INDEX
from controlplane.registry.model import ResourceRequirements
from controlplane.registry.selection_diffusers import MODEL_INDEX

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_NO_WEIGHTS = {"I64", "U64", "BOOL"}  # indices and masks, such as BERT's position_ids
_ENGINE_BYTES = 4  # artefacts hold fp32


def weight_facts(folder: Path) -> Facts:
    """Exact parameter count and type out of the safetensors headers; no weight is read.

    The weights are those at the root, or of the first folder that has any (a Transformer module);
    of a diffusers pipeline those of all components.
    """
    if (folder / MODEL_INDEX).is_file():
        parts = sorted(folder.glob("*/*.safetensors"))
        counted = [tensor_counts(part) for part in parts]
        return _weights(counted, MODEL_INDEX) if counted and None not in counted else {}
    for home in [folder, *sorted(path for path in folder.glob("*_*") if path.is_dir())]:
        parts = sorted(home.glob("model*.safetensors"))
        counted = [tensor_counts(part) for part in parts]
        if counted and None not in counted:
            return _weights(counted, parts[0].name if len(parts) == 1 else SAFE_INDEX)
    return {}


def _weights(counted: list[dict[str, int] | None], file: str) -> Facts:
    by_dtype: dict[str, int] = {}
    for counts in counted:
        for dtype, count in (counts or {}).items():
            if dtype not in _NO_WEIGHTS:
                by_dtype[dtype] = by_dtype.get(dtype, 0) + count
    total = sum(by_dtype.values())
    if not total:
        return {}
    needs = ResourceRequirements.estimate(total * _ENGINE_BYTES)
    most = max(by_dtype, key=lambda name: (by_dtype[name], name))
    values = {
        "parameters": total,
        "dtype": most,
        "framework": "pytorch",
        "memory_mb": needs.memory_mb,
    }
    return {name: Fact(value, FILE, file) for name, value in values.items()}


def tensor_counts(path: Path) -> dict[str, int] | None:
    """Elements per type (`F32`, `BF16`, …) of a safetensors file; None when it is not one.

    The format: eight bytes, little endian, the header's length; then the header, JSON, with
    `dtype` and `shape` of each tensor (github.com/huggingface/safetensors, README).
    """
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(_LARGEST_HEADER, path.stat().st_size):
                return None
            header = json.loads(handle.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        counts: dict[str, int] = {}
        for tensor in tensors:
            dtype = str(tensor["dtype"])
            counts[dtype] = counts.get(dtype, 0) + math.prod(int(n) for n in tensor["shape"])
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return counts
