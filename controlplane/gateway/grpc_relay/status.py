"""How a call ends (gRPC over HTTP/2: "Responses"): status, text and metadata as trailers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import grpc
import structlog

from controlplane.errors import ModelMoraError
from controlplane.gateway.errors import GENERIC_MESSAGE, GRPC_CODE, lookup, retry_after
from controlplane.gateway.grpc_relay.headers import encode
from controlplane.gateway.trace import TRACE_HEADER

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.headers import Block, HeaderFields

log = structlog.get_logger(__name__)

OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED = 0, 1, 3, 4
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14
CANCELLED_CODE = "CANCELLED"  # among our error codes: the client gave up
NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

RESPONSE_HEADERS: HeaderFields = ((b":status", b"200"), (b"content-type", b"application/grpc"))
RESPONSE_BLOCK = encode(RESPONSE_HEADERS)
_MAX_TEXT = 4096  # clients take 8 to 16 KB of trailers
_TRACE_ID_SIZE = 36
_TRACE_PREFIX = encode(((TRACE_HEADER.encode(), b"x" * _TRACE_ID_SIZE),))[:-_TRACE_ID_SIZE]


class Refused(Exception):
    """Triton's own error, to be passed on with code and text unchanged."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def trace_trailer(trace_id: str) -> bytes:
    """The encoded trace id, to be put behind other trailers."""
    return _TRACE_PREFIX + trace_id.encode()


def status_of(error: Exception) -> tuple[int, str, HeaderFields]:
    """Code, text and further trailers of a failure."""
    if isinstance(error, Refused):
        return error.code, error.text, ()
    if not isinstance(error, ModelMoraError):
        log.error("unexpected error", error_code="INTERNAL_ERROR", exc_info=error)
        return INTERNAL, GENERIC_MESSAGE, ()
    extra = [(b"x-error-code", error.code.encode())]
    if wait := retry_after(error):
        extra.append((b"retry-after", wait.encode()))
    return lookup(GRPC_CODE, error, grpc.StatusCode.INTERNAL).value[0], error.message, tuple(extra)


def trailers(code: int, text: str = "", extra: HeaderFields = ()) -> HeaderFields:
    """Trailers; after RESPONSE_HEADERS they are an answer without any message."""
    status: HeaderFields = ((b"grpc-status", str(code).encode()),)
    if text:
        status += ((b"grpc-message", percent_encoded(text)),)
    return status + extra


def percent_encoded(text: str) -> bytes:
    """A status text as a header can carry it: printable ASCII, the rest as %XX of UTF-8."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in text.encode("utf-8", "replace")[:_MAX_TEXT]
    )


def status_in(block: Block) -> tuple[int, str]:
    """Code and text that a server's trailers carry; UNKNOWN (2) where they carry none."""
    code = block.get(b"grpc-status") or b""
    text = block.get(b"grpc-message")
    number = int(code) if code.isdigit() and len(code) < 4 else 2
    return number, unquote(text.decode("latin-1")) if text else ""
