"""Between the client's steps and httpx: requests of calls, results and errors of answers."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
import msgspec

from controlplane.client_types import ModelMoraApiError, ServerUnreachable
from controlplane.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.client_sse import Listen
    from controlplane.client_steps import Call

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: dict[str, Any] | None = None
    trace_id: str | None = None


class _Envelope(msgspec.Struct):
    error: _ErrorBody


def read(call: Call[T], response: httpx.Response) -> T:
    """The answer's body as the call's result type.

    Raises:
        ModelMoraApiError: for an error envelope, or UNEXPECTED_RESPONSE for anything else.
    """
    if not (response.is_success or response.status_code in call.also):
        raise api_error(response)
    if call.result is type(None):
        return None
    if call.result is bytes:
        return cast("T", response.content)
    try:
        return msgspec.json.decode(response.content, type=call.result)
    except msgspec.DecodeError as error:
        raise _unexpected(response, str(error)) from error


def api_error(response: httpx.Response) -> ModelMoraApiError:
    """The error that an answer's envelope tells of."""
    try:
        error = msgspec.json.decode(response.content, type=_Envelope).error
    except msgspec.DecodeError:
        return _unexpected(response, "no error envelope")
    return ModelMoraApiError(
        error.code, error.message, error.details, response.status_code, error.trace_id
    )


def _unexpected(response: httpx.Response, why: str) -> ModelMoraApiError:
    return ModelMoraApiError(
        "UNEXPECTED_RESPONSE",
        f"{response.url} answered {response.status_code} with something that is not "
        f"ModelMora's ({why}): does another program use this port?",
        status=response.status_code,
        trace_id=response.headers.get("X-Trace-Id"),
    )


@contextmanager
def unreachable(url: str) -> Iterator[None]:
    """httpx's transport errors, as `ServerUnreachable`."""
    try:
        yield
    except httpx.TimeoutException as error:
        connected = not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
        raise ServerUnreachable(url, "timed out", timed_out=connected) from error
    except httpx.TransportError as error:
        raise ServerUnreachable(url, _reason(error)) from error


def _reason(error: BaseException) -> str:
    """The system's own words, which httpx wraps differently per kind of client."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            # asyncio adds the address to it: "Connect call failed ('127.0.0.1', 8000)".
            return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def client_options(url: str) -> dict[str, Any]:
    """Arguments of httpx's clients. Raises ValueError: `url` is no server's address."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not a server's address: write http://host:port")
    return {
        "base_url": parsed,
        # A proxy of the environment cannot reach this machine's loopback.
        "trust_env": not is_loopback(parsed.host),
        # Without TLS there is nothing to verify, and reading the certificates takes 50 ms.
        "verify": parsed.scheme == "https",
    }


def request(call: Call[Any]) -> dict[str, Any]:
    """A call as arguments of httpx's `request`."""
    timeout = httpx.Timeout(call.timeout, connect=5.0)
    made = {"method": call.method, "url": call.path, "params": call.params, "timeout": timeout}
    content = call.content if call.json is None else msgspec.json.encode(call.json)
    if content is not None:
        made["content"] = content
        made["headers"] = {"Content-Type": call.content_type}
    return made


def stream(step: Listen) -> dict[str, Any]:
    """A stream of events as arguments of httpx's `stream`."""
    timeout = httpx.Timeout(step.timeout, connect=5.0)
    headers = {"Accept": "text/event-stream"}
    return {"method": "GET", "url": step.path, "headers": headers, "timeout": timeout}


def is_event_stream(response: httpx.Response) -> bool:
    """False for an error, or for whatever else does not end its lines as events do."""
    kind = response.headers.get("Content-Type", "")
    return response.is_success and kind.startswith("text/event-stream")


def server_url(url: str | None = None) -> str:
    """`url`, else MODELMORA_URL, else http://127.0.0.1:8000; without a trailing slash."""
    return (url or os.environ.get("MODELMORA_URL") or DEFAULT_URL).rstrip("/")
