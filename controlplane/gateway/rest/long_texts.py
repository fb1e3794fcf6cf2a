"""Takes long texts out of a JSON body before it is decoded, see `inference/tasks/long_text.py`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from controlplane.inference.tasks.long_text import LongText

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG = 1 << 20
# A body of more strings is not looked through: so many are no files.
_MOST_STRINGS = 10_000
_SLICE = 1 << 20
_PLAIN = bytes(code for code in range(0x20, 0x7F) if code not in b'"\\')

Found = dict[str, LongText]


def without_long_texts(chunks: Sequence[bytes]) -> tuple[bytes, Found]:
    """The body with a mark in the place of each long text, and the texts by their marks.

    A body that cannot be looked through is given back whole. To be called in a thread: it lets
    others run between slices.
    """
    body = b"".join(chunks)
    mark, parts, found = secrets.token_hex(16), list[bytes](), Found()
    view, done, place = memoryview(body), 0, 0
    for _ in range(_MOST_STRINGS):
        start = body.find(b'"', place) + 1
        if not start:
            break
        end = _end(body, start)
        if end < 0:
            return body, {}  # damaged: the decoder says where
        if end - start >= LONG and _is_plain(view[start:end]):
            name = f"{mark}-{len(found)}"
            parts += [body[done:start], name.encode()]
            found[name], done = LongText(view[start:end]), end
        place = end + 1
    return (b"".join([*parts, body[done:]]), found) if found else (body, {})


def put_back(value: Any, found: Found, used: set[str]) -> Any:
    """A decoded value with the long texts in the places of their marks, which go to `used`."""
    if isinstance(value, str):
        if value in found:
            used.add(value)
        return found.get(value, value)
    if isinstance(value, list):
        return [put_back(part, found, used) for part in value]
    if isinstance(value, dict):
        return {name: put_back(part, found, used) for name, part in value.items()}
    return value


def _end(body: bytes, start: int) -> int:
    """Where the string that begins at `start` ends; -1 when it does not."""
    end = body.find(b'"', start)
    while end >= 0:
        before = end
        while before > start and body[before - 1] == 0x5C:  # a backslash
            before -= 1
        if (end - before) % 2 == 0:
            return end
        end = body.find(b'"', end + 1)
    return end


def _is_plain(content: memoryview) -> bool:
    return not any(
        bytes(content[i : i + _SLICE]).translate(None, _PLAIN)
        for i in range(0, len(content), _SLICE)
    )
