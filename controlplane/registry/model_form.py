"""A model's tensors, as its manifest lists them. Rules only, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

# As in Triton's configuration that is made of a manifest (triton/model_config.py).
_MAX_BATCH_SIZE = 32


class TensorForm(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: `datatype` in the v2 protocol's words, `shape` without the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class ModelForm(msgspec.Struct, frozen=True, kw_only=True):
    """How requests to a model look.

    Attributes:
        max_batch_size: 0 for a model whose tensors have no batch dimension.
        decoupled: a request has any number of responses.
        stateful: its requests belong to sequences, which a single request cannot take part in.
    """

    inputs: tuple[TensorForm, ...] = ()
    outputs: tuple[TensorForm, ...] = ()
    max_batch_size: int = _MAX_BATCH_SIZE
    decoupled: bool = False
    stateful: bool = False

    @classmethod
    def of(cls, manifest: Mapping[str, Any] | None) -> ModelForm:
        """The form that an artefact's manifest tells of."""
        known = manifest or {}
        ready_made = known.get("ready_made") or {}
        return cls(
            inputs=_tensors(known.get("inputs", ())),
            outputs=_tensors(known.get("outputs", ())),
            max_batch_size=int(known.get("max_batch_size", _MAX_BATCH_SIZE)),
            decoupled=bool(known.get("decoupled") or ready_made.get("decoupled")),
            stateful=bool(ready_made.get("sequence")),
        )


def _tensors(listed: Any) -> tuple[TensorForm, ...]:
    return tuple(
        TensorForm(
            name=tensor["name"],
            datatype=tensor["datatype"],
            shape=tuple(tensor["shape"]),
            optional=bool(tensor.get("optional", False)),
        )
        for tensor in listed
    )
