"""What Triton's answers become on their way to an HTTP client: checked, mended, told as errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from controlplane.errors import ModelMoraError
from controlplane.gateway.asgi import Reply
from controlplane.gateway.errors import GENERIC_MESSAGE, V2_HTTP_STATUS, lookup, retry_after
from controlplane.gateway.v2_checks import check_answer
from controlplane.gateway.v2_compression import decompress, decompress_begin

if TYPE_CHECKING:
    from controlplane.gateway.upstream_connection import Answer, Headers

log = structlog.get_logger(__name__)

HEADER_LENGTH = "inference-header-content-length"
HEADER_LENGTH_BYTES = HEADER_LENGTH.encode()
# RFC 9110 §7.6.1, and what the relay writes itself. A client must not be able to bring the
# header that opens the private server's control calls.
NOT_FORWARDED = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"),
        *(b"transfer-encoding", b"proxy-authenticate", b"proxy-authorization", b"expect"),
        *(b"date", b"server", b"host", b"content-length", b"content-encoding"),
        HEADER_LENGTH_BYTES,
    }
)
_NOT_RETURNED = NOT_FORWARDED - {b"content-encoding", HEADER_LENGTH_BYTES}
_GENERATE_FAULT = "generate expects model to produce exactly 1 response"
_MOST_JSON = 2**30


def error_reply(error: Exception) -> Reply:
    """A failure in Triton's own form (KServe v2, `$inference_error_response`)."""
    if not isinstance(error, ModelMoraError):
        log.error("unexpected error", error_code="INTERNAL_ERROR", exc_info=error)
        return Reply.json(500, {"error": GENERIC_MESSAGE})
    reply = Reply.json(lookup(V2_HTTP_STATUS, error, 500), {"error": error.message})
    if wait := retry_after(error):
        reply.headers.append((b"retry-after", wait.encode()))
    return reply


def error_text(body: bytes) -> str:
    """Triton's reason in an answer `{"error": "…"}`, empty in others."""
    try:
        found = msgspec.json.decode(body, type=dict[str, object]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def returned(answer: Answer) -> Headers:
    """Headers of an answer that the client is to have."""
    return [pair for pair in answer.headers if pair[0] not in _NOT_RETURNED]


def is_json(answer: Answer) -> bool:
    """True when all of the body is JSON, and has to be seen before it is passed on."""
    return answer.header(HEADER_LENGTH_BYTES) is None


def checked_reply(answer: Answer) -> Reply:
    """A whole answer as one reply, its JSON checked.

    Raises:
        UnwritableAnswer: there is no valid JSON for it.
    """
    body = answer.whole
    if answer.status < 300:
        check_answer(_json_of(answer, body))
    return Reply(answer.status, body, returned(answer))


def check_begun(answer: Answer) -> None:
    """Check the JSON at the beginning of an answer that is passed on as it comes.

    Raises:
        UnwritableAnswer: there is no valid JSON for it.
    """
    length = answer.header(HEADER_LENGTH_BYTES)
    if answer.status < 300 and length and not answer.header(b"content-encoding"):
        begun = b"".join(answer.body)
        if len(begun) >= int(length):
            check_answer(begun[: int(length)])


def mended(action: str, reply: Reply) -> Reply:
    """Faults of the request that Triton reports as success or as its own failure: 400."""
    if action == "infer":
        if reply.status == 501:  # a decoupled model, which only streams
            reply.status = 400
    elif reply.status == 200 and reply.body.startswith(b'{"error"'):
        text = error_text(reply.body)
        reply.status = 400 if _GENERATE_FAULT in text else 500
    return reply


def _json_of(answer: Answer, body: bytes) -> bytes:
    length = answer.header(HEADER_LENGTH_BYTES)
    encoding = answer.header(b"content-encoding")
    if encoding is None:
        return body if length is None else body[: int(length)]
    if length is None:
        return decompress(body, encoding.decode("latin-1"), _MOST_JSON)
    return decompress_begin(body, encoding.decode("latin-1"), int(length))
