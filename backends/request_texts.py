"""BYTES tensors with one item per row, decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_CHARACTERS = 100_000


def read_texts(name: str, items: NDArray[Any]) -> list[str]:
    """The texts of a tensor.

    Args:
        name: the tensor's, for messages.
        items: object array of UTF-8 bytes, `[n, 1]` or `[n]`; n may be 0.

    Raises:
        InputError: another shape, not UTF-8, or a text above 100,000 characters.
    """
    return [decoded(f"{name}[{index}]", raw) for index, raw in enumerate(read_bytes(name, items))]


def read_bytes(name: str, items: NDArray[Any]) -> list[bytes]:
    """The items of a tensor as they are.

    Raises:
        InputError: the shape is neither `[n, 1]` nor `[n]`, or an item holds no bytes.
    """
    if items.ndim not in (1, 2) or (items.ndim == 2 and items.shape[1] != 1):
        shape = list(items.shape)
        raise InputError(f"{name} must have the shape [n, 1], one item per row, got {shape}.")
    for index, raw in enumerate(items.reshape(-1)):
        if not isinstance(raw, bytes):
            raise InputError(f"{name}[{index}] must be BYTES, got {type(raw).__name__}.")
    return list(items.reshape(-1))


def read_one_bytes(name: str, inputs: Mapping[str, Any]) -> bytes:
    """The one item of an input that must be there.

    Raises:
        InputError: it is missing, or another number of items, or no bytes.
    """
    if name not in inputs:
        raise InputError(f"The input {name} is missing.")
    items = read_bytes(name, inputs[name])
    if len(items) != 1:
        raise InputError(f"{name} must hold one item, got {len(items)}.")
    return items[0]


def decoded(where: str, raw: bytes) -> str:
    """The text that the bytes are.

    Raises:
        InputError: naming `where` it is: not UTF-8, or above 100,000 characters.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not valid UTF-8: {error.reason} at byte {error.start}."
        ) from error
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{where} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed."
        )
    return text
