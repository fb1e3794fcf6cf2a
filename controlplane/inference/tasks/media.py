"""Files in JSON: base64, data URIs (RFC 2397), and addresses where these are allowed."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from controlplane.inference.tasks.limits import MAX_FILE_BYTES
from controlplane.inference.tasks.long_text import LongText
from controlplane.inference.tasks.plan import Reference

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Faults

# Decoded at a time: between two slices other threads may run, the event loop's among them.
_SLICE = 1 << 20
_BASE64_DATA = b";base64,"
_LONGEST_HEAD = 256
_SPACE = b" \t\r\n"


class MediaRules:
    """Which forms of files a server takes."""

    def __init__(self, *, allow_urls: bool = False) -> None:
        self.allow_urls = allow_urls


def read_media(
    text: object, path: str, kind: str, rules: MediaRules, faults: Faults
) -> bytes | Reference:
    """The bytes of a file, or where they are; what is wrong goes to `faults`.

    Args:
        kind: what it is to be, for messages: image, recording.
    """
    if isinstance(text, LongText):
        return _long(text, path, kind, rules, faults)
    if not isinstance(text, str) or not text.strip():
        faults[path] = [f"must be the {kind} as base64 or as a data URI"]
        return b""
    head = text[:16].lstrip().lower()
    if head.startswith(("http://", "https://")):
        return _reference(text.strip(), path, kind, rules, faults)
    try:
        content = _data_uri(text.lstrip()) if head.startswith("data:") else from_base64(text)
    except ValueError as error:
        faults[path] = [f"is not the base64 or data URI of a file: {error}"]
        return b""
    _check_size(content, path, kind, faults)
    return content


def _long(
    text: LongText, path: str, kind: str, rules: MediaRules, faults: Faults
) -> bytes | Reference:
    """Decode where it lies; what is unusual goes the way of every other text."""
    try:
        content = _in_place(text.content)
    except ValueError:
        return read_media(str(text), path, kind, rules, faults)
    _check_size(content, path, kind, faults)
    return content


def _in_place(data: memoryview) -> bytes:
    """Of base64, or a data URI of that, without anything unusual.

    Raises:
        ValueError: it is not that; it may still be base64.
    """
    head, begin = bytes(data[:_LONGEST_HEAD]), 0
    if head.startswith(b"data:"):
        begin = head.index(_BASE64_DATA) + len(_BASE64_DATA)
    parts = []
    for i in range(begin, len(data), _SLICE):
        part = bytes(data[i : i + _SLICE])
        if len(part) % 4 or (i + _SLICE < len(data) and b"=" in part):
            raise ValueError("it is cut off, or has '=' in the middle")
        _check_padding(part)
        parts.append(_decoded(part))
    return b"".join(parts)


def _check_size(content: bytes, path: str, kind: str, faults: Faults) -> None:
    if not content:
        faults[path] = [f"holds no {kind}: it is empty"]
    elif len(content) > MAX_FILE_BYTES:
        most = MAX_FILE_BYTES // 1_000_000
        faults[path] = [f"must be at most {most} MB (it has {len(content) / 1e6:.1f} MB)"]


def _reference(
    url: str, path: str, kind: str, rules: MediaRules, faults: Faults
) -> bytes | Reference:
    if not rules.allow_urls:
        faults[path] = [
            f"is an address, and this server fetches none: send the {kind} as base64 or as a data "
            "URI, or allow addresses with MODELMORA_ALLOW_URL_INPUTS=true"
        ]
        return b""
    return Reference(url=url, field=path)


def _data_uri(text: str) -> bytes:
    head, comma, data = text.partition(",")
    if not comma:
        raise ValueError("a data URI has a comma before its data")
    if head.lower().rstrip().endswith(";base64"):
        return from_base64(data)
    return unquote_to_bytes(data)


def from_base64(text: str) -> bytes:
    """The bytes that base64 stands for; line breaks, the URL alphabet and no padding are taken.

    Raises:
        ValueError: it is not base64.
    """
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("it has characters that base64 does not have") from None
    if any(space in data for space in (b" ", b"\t", b"\r", b"\n")):
        data = data.translate(None, _SPACE)
    if b"-" in data or b"_" in data:
        data = data.translate(bytes.maketrans(b"-_", b"+/"))
    data += b"=" * (-len(data) % 4)
    _check_padding(data)
    try:
        # The slices end at multiples of 4 characters: only the last one may be padded.
        parts = [_decoded(data[i : i + _SLICE]) for i in range(0, len(data), _SLICE)]
    except binascii.Error as error:
        raise ValueError(str(error).lower()) from None
    return b"".join(parts)


def _check_padding(data: bytes) -> None:
    first = data.find(b"=")
    if first >= 0 and (len(data) - first > 2 or data[first:].strip(b"=")):
        raise ValueError("it is cut off, or has '=' in the middle")


def _decoded(data: bytes) -> bytes:
    found = binascii.a2b_base64(data)
    # Other characters are skipped in silence, so the length tells whether there were any.
    if len(found) != len(data) // 4 * 3 - data[-2:].count(b"="):
        raise ValueError("it has characters that base64 does not have")
    return found
