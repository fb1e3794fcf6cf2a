"""Bodies of v2 requests with a Content-Encoding: gzip or deflate, inflated up to a limit."""

from __future__ import annotations

import zlib

from controlplane.errors import InvalidInput
from controlplane.gateway.errors import BodyTooLarge, UnsupportedMedia


def decompress(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The plain body of a request with `Content-Encoding: gzip` or `deflate`.

    Raises:
        InvalidInput: it is damaged, or cut off.
        UnsupportedMedia: the encoding is another.
        BodyTooLarge: it is more than `limit` bytes.
    """
    stream = _inflater(encoding)
    if stream is None:
        return body
    plain = _inflated(stream, body, limit + 1, encoding)
    if len(plain) > limit:
        raise BodyTooLarge(limit)
    if not stream.eof:
        raise InvalidInput(f"The {encoding} body is cut off.")
    return plain


def decompress_begin(body: bytes, encoding: str | None, size: int) -> bytes:
    """The first `size` bytes of a body that may be compressed; the rest stays as it is.

    Raises:
        InvalidInput, UnsupportedMedia: as `decompress`.
    """
    stream = _inflater(encoding) if size else None
    return body[:size] if stream is None else _inflated(stream, body, size, encoding)


def _inflater(encoding: str | None) -> zlib._Decompress | None:
    if encoding is None or encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMedia(f"Content-Encoding {encoding!r} is unknown; use gzip or deflate.")
    # 32: zlib finds out by itself whether it is gzip or zlib framing (zlib's inflateInit2).
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)


def _inflated(stream: zlib._Decompress, body: bytes, most: int, encoding: str | None) -> bytes:
    try:
        return stream.decompress(body, most)
    except zlib.error as error:
        raise InvalidInput(f"The body is not valid {encoding}: {error}.") from None
