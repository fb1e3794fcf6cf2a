"""Megabytes of text within a JSON body, which are decoded from where they lie. Rules only.

As a `str` a file of 40 MB in base64 is copied by the JSON decoder, and again to be read as bytes;
each copy keeps Python's lock, and so everybody else, for its whole length.
"""

from __future__ import annotations


class LongText:
    """Printable ASCII without quotes and backslashes: its bytes in the body are its characters."""

    def __init__(self, content: memoryview) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __str__(self) -> str:
        return str(self.content, "ascii")


def plain(value: object) -> object:
    """A JSON value with strings in the place of all long texts, for those who read strings."""
    if isinstance(value, LongText):
        return str(value)
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value
