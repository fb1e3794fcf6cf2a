"""What a call's headers mean, and the headers that are sent on (gRPC over HTTP/2: "Requests").

Protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from controlplane.gateway.grpc_relay.headers import encode
from controlplane.gateway.trace import TRACE_HEADER

if TYPE_CHECKING:
    from controlplane.gateway.grpc_relay.headers import Block, HeaderFields

SERVICE = "inference.GRPCInferenceService"
_PREFIX = f"/{SERVICE}/".encode()
_INFER = _PREFIX + b"ModelInfer"
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# Each hop has these for itself.
_NOT_FORWARDED = frozenset(
    {
        *(b"user-agent", b"te", b"content-type", b"host", b"connection", b"content-length"),
        *(b"transfer-encoding", b"keep-alive", b"upgrade", b"proxy-connection"),
        TRACE_HEADER.encode(),
        # Triton 2.51 dies of it after some dozens of failures that end a stream with a status.
        b"triton_grpc_error",
    }
)
# The library's own (we keep the time, we inflate the messages), and the key of the private server's
# restricted APIs, which is ours alone.
_NOT_FORWARDED_PREFIXES = (b":", b"grpc-", b"triton-grpc-protocol-")
_ACCEPTED_ENCODINGS = b"grpc-accept-encoding"
# Its answers are read on their way (`answers.py`), so Triton must not compress them.
_STREAM = _PREFIX + b"ModelStreamInfer"
# What Triton's end would take badly must not reach it: other clients' calls are on that connection.
_NAME = re.compile(rb":?[0-9a-z_.-]+")
_VALUE = re.compile(rb"[\x20-\x7e]*")
MAX_HEADERS = 16 * 1024  # counted as RFC 9113 §6.5.2 does
_CACHED = 256
_forwarded: dict[HeaderFields, bytes] = {}


class RequestHead(NamedTuple):
    """A call's headers.

    Attributes:
        method: name of the RPC; empty when the path is not one of the service.
        path: as it was sent.
        is_grpc: method and content type are those of gRPC.
        timeout: seconds of `grpc-timeout`, None without one.
        encoding: of compressed messages, `identity` for none.
        trace_id, traceparent: headers that may carry a trace id.
        errors_as_status: a failure ends ModelStreamInfer with a status, as clients that send
            `triton_grpc_error` want it, rather than being one of its answers.
        fault: why the headers cannot be taken; empty where they can.
        is_infer: they are those of an ordinary ModelInfer.
        forwarded: the header block for Triton.
    """

    method: str
    path: str
    is_grpc: bool
    timeout: float | None
    encoding: str
    trace_id: str | None
    traceparent: str | None
    errors_as_status: bool
    fault: str
    is_infer: bool
    forwarded: bytes


def request_head(block: Block) -> RequestHead:
    """Read a call's headers; the outcome stays with the block."""
    if block.request is None:
        block.request = _read(block)
    return block.request


def _read(block: Block) -> RequestHead:
    path = block.get(b":path") or b""
    content_type = block.get(b"content-type") or b""
    is_grpc = block.get(b":method") == b"POST" and content_type.startswith(b"application/grpc")
    fault = _fault(block.fields)
    return RequestHead(
        method=path[len(_PREFIX) :].decode("latin-1") if path.startswith(_PREFIX) else "",
        path=path.decode("latin-1"),
        is_grpc=is_grpc,
        timeout=timeout_seconds(block.get(b"grpc-timeout")),
        encoding=_text(block, b"grpc-encoding") or "identity",
        trace_id=_text(block, TRACE_HEADER.encode()),
        traceparent=_text(block, b"traceparent"),
        errors_as_status=block.get(b"triton_grpc_error") == b"true",
        fault=fault,
        is_infer=is_grpc and not fault and path == _INFER,
        forwarded=_forward(block.fields, path),
    )


def _fault(fields: HeaderFields) -> str:
    if sum(len(name) + len(value) + 32 for name, value in fields) > MAX_HEADERS:
        return f"The call's metadata is larger than {MAX_HEADERS} bytes."
    for name, value in fields:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            return f"The metadata {name.decode('latin-1')!r} has characters that it must not have."
    return ""


def timeout_seconds(value: bytes | None) -> float | None:
    """A `grpc-timeout` in seconds; None without one, or when it is malformed."""
    match = _TIMEOUT.fullmatch(value) if value else None
    return int(match.group(1)) * _UNITS[match.group(2)] if match else None


def triton_block(path: bytes, metadata: HeaderFields = ()) -> bytes:
    """The header block of a call of our own to Triton."""
    return encode(
        (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"triton"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *metadata,
        )
    )


def method_path(method: str) -> bytes:
    """The `:path` of one of the service's methods."""
    return _PREFIX + method.encode()


def _forward(fields: HeaderFields, path: bytes) -> bytes:
    kept = tuple(
        (name, value)
        for name, value in fields
        if (name == _ACCEPTED_ENCODINGS and path != _STREAM)
        or (name not in _NOT_FORWARDED and not name.startswith(_NOT_FORWARDED_PREFIXES))
    )
    key = ((b":path", path), *kept)
    if (known := _forwarded.get(key)) is not None:
        return known
    if len(_forwarded) >= _CACHED:
        _forwarded.clear()
    _forwarded[key] = triton_block(path, kept)
    return _forwarded[key]


def _text(block: Block, name: bytes) -> str | None:
    value = block.get(name)
    return None if value is None else value.decode("latin-1")
