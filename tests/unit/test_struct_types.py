"""What structs are made of is there at run time: a body that cannot be decoded would be a 500."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, get_type_hints

import msgspec
import pytest

import controlplane

if TYPE_CHECKING:
    from collections.abc import Iterator


# what is decoded from requests, answers and rows
DECODED = ("controlplane.client", "controlplane.gateway.rest.", "controlplane.registry.")


def structs() -> Iterator[type]:
    for found in pkgutil.walk_packages(controlplane.__path__, "controlplane."):
        if not found.name.startswith(DECODED):
            continue
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            ours = isinstance(value, type) and value.__module__ == module.__name__
            if ours and issubclass(value, msgspec.Struct):
                yield value


@pytest.mark.parametrize(
    "struct", list(structs()), ids=lambda one: f"{one.__module__}.{one.__name__}"
)
def test_every_field_s_type_can_be_resolved(struct: type) -> None:
    get_type_hints(struct, include_extras=True)
