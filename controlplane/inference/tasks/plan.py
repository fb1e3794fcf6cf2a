"""A checked call: what is to be sent to Triton, item by item. Rules only: no arrays here."""

from __future__ import annotations

from typing import Any

import msgspec

# Outputs of one item by tensor: nested lists of numbers, of bytes for BYTES.
Outputs = dict[str, Any]
Faults = dict[str, list[str]]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """An address in the place of a file's bytes; they are fetched before the call runs.

    Attributes:
        field: dotted path of the field that holds it, for errors.
    """

    url: str
    field: str


class TensorValue(msgspec.Struct, frozen=True, kw_only=True):
    """One input of one item.

    Attributes:
        shape: without a batch dimension.
        values: flat, in row-major order: numbers, or bytes (or a `Reference`) for BYTES.
    """

    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]

    @classmethod
    def of_bytes(cls, content: bytes | Reference) -> TensorValue:
        """One BYTES element, as the inputs of all our tasks are."""
        return cls(datatype="BYTES", shape=(1,), values=(content,))


Item = dict[str, TensorValue]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a caller wrote a value.

    Attributes:
        path: of the field, dotted.
        listed: it is a list with a value for each item.
    """

    path: str
    listed: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a checked call comes to.

    Attributes:
        items: the inputs of each; all items have the same tensors.
        single: the caller sent one item, not lists; the answer has the same form.
        parameters: request parameters for the backend.
        outputs: the tensors wanted; empty for all that the model has.
        places: by tensor or parameter, the caller's field.
    """

    items: tuple[Item, ...]
    single: bool
    parameters: dict[str, Any]
    outputs: tuple[str, ...]
    places: dict[str, Place] = {}

    @property
    def references(self) -> tuple[Reference, ...]:
        """What has to be fetched first."""
        return tuple(
            value
            for item in self.items
            for tensor in item.values()
            for value in tensor.values
            if isinstance(value, Reference)
        )

    def with_fetched(self, contents: dict[Reference, bytes]) -> Plan:
        """The same with the bytes in the place of the references."""
        items = tuple(
            {name: _filled(tensor, contents) for name, tensor in item.items()}
            for item in self.items
        )
        return msgspec.structs.replace(self, items=items)


def _filled(tensor: TensorValue, contents: dict[Reference, bytes]) -> TensorValue:
    values = tuple(contents.get(v, v) if isinstance(v, Reference) else v for v in tensor.values)
    return msgspec.structs.replace(tensor, values=values)
