"""The head of an HTTP request, read on its own: request line and headers without their callbacks.

httptools decides here as everywhere what the bytes mean; what it would not simply read as "a body
of so many bytes follows, and the connection stays open" is no `Head`.
"""

from __future__ import annotations

from typing import NamedTuple

import httptools

Headers = list[tuple[bytes, bytes]]

_PARSER_ERRORS = (httptools.HttpParserError, httptools.HttpParserUpgrade)
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade"})


class Head(NamedTuple):
    """A plain head: HTTP/1.1, kept open, with a body of `length` bytes after it, at least one.

    Attributes:
        path: as it came, without a query.
        headers: names in lower case.
    """

    method: bytes
    path: bytes
    headers: Headers
    length: int


def read_head(raw: bytes) -> Head | None:
    """Read bytes that end with the first empty line; None where they are no plain head."""
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(raw)
        url = httptools.parse_url(reader.url)
    except _PARSER_ERRORS:
        return None
    plain = parser.get_http_version() == "1.1" and parser.should_keep_alive()
    length = _length(reader.headers)
    if not (reader.in_body and plain and url.path == reader.url and url.path.isascii() and length):
        return None
    return Head(parser.get_method(), url.path, reader.headers, length)


def _length(headers: Headers) -> int:
    """Bytes of the body, 0 where that is not all there is to say about it."""
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 20:
        return 0
    return 0 if any(name in _NOT_PLAIN for name, _ in headers) else int(lengths[0])


class _Reader:
    """The parser's callbacks. `in_body`: it stands between the head and the body."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: Headers = []
        self.in_body = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_body(self, _: bytes) -> None:
        self.in_body = False

    def on_message_complete(self) -> None:
        self.in_body = False
