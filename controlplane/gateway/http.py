"""The one HTTP port: traces and logs each request, and gives it to /v2 or to the REST API."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING

import structlog

from controlplane.gateway.asgi import BEGUN, ClientWatch, header
from controlplane.gateway.trace import TRACE_HEADER, begin_trace, continue_trace

if TYPE_CHECKING:
    from controlplane.gateway.asgi import App, Message, Receive, Scope, Send
    from controlplane.gateway.v2_begun import Begun
    from controlplane.gateway.v2_direct import Direct
    from controlplane.gateway.v2_http import V2Http

access = structlog.get_logger("modelmora.access")
# The standard library's logger of that name has the level in force and tells it sooner.
_levels = logging.getLogger("modelmora.access")

# A Triton name where the REST routes want two segments; `--` cannot occur in a model id.
_TRITON_NAME = re.compile(r"(/api/v1/(?:models|infer)/)((?:(?!--)[^/])+)--((?:(?!--)[^/])+)(/.*)?")
# Asked for every few seconds by machines: the log would hold little else.
_QUIET = ("/health", "/metrics", "/api/v1/metrics", "/v2")
# Requests that are pointless when nobody waits for them any more. They are the data plane as well:
# at thousands of lines a second the log would cost more than the relay.
_RUN_MODELS = ("/v2/", "/api/v1/infer/")
CLIENT_GONE = 499  # as nginx logs it; never sent


class HttpGateway:
    """The outermost ASGI application. `close` ends what it keeps open towards Triton."""

    def __init__(self, rest: App, v2: V2Http) -> None:
        self._rest = rest
        self._v2 = v2

    @property
    def direct(self) -> Direct:
        """The way around ASGI for infer requests that need not wait."""
        return self._v2.direct

    async def close(self) -> None:
        """Close connections; for servers that do not speak ASGI's lifespan protocol."""
        await self._v2.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's lifespan."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Begun | None = scope.get(BEGUN)
        if begun is None:
            began = time.perf_counter()
            trace = begin_trace(header(scope, TRACE_HEADER), header(scope, "traceparent"))
        else:
            began, trace = begun.started, begun.trace
            continue_trace(trace)
        status = CLIENT_GONE

        path = scope["path"]
        runs_models = path.startswith(_RUN_MODELS)
        watch = ClientWatch(receive) if runs_models else None

        async def traced_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                message = {**message, "headers": [*headers, (b"x-trace-id", trace.encode())]}
            elif watch is not None and not message.get("more_body", False):
                watch.stop()
            await send(message)

        try:
            source = receive if watch is None else watch.receive
            await self._app_for(path)(_spelled_out(scope), source, traced_send)
        except asyncio.CancelledError:
            if watch is None or not watch.gone:
                raise
            status = CLIENT_GONE
        finally:
            if watch is not None:
                watch.stop()
            if begun is not None:
                begun.close()
            log_access(scope["method"], path, status, began)

    def _app_for(self, path: str) -> App:
        return self._v2 if path == "/v2" or path.startswith("/v2/") else self._rest


def _spelled_out(scope: Scope) -> Scope:
    """The request with a Triton name in a REST path written as the model id it stands for."""
    match = _TRITON_NAME.fullmatch(scope["path"])
    if match is None:
        return scope
    start, org, repo, rest = match.groups()
    return {**scope, "path": f"{start}{org}/{repo}{rest or ''}"}


def log_access(method: str, path: str, status: int, began: float) -> None:
    """Write the access line of a request; `began` is on `time.perf_counter()`."""
    quiet = status < 400 and path.startswith((*_QUIET, *_RUN_MODELS))
    if quiet and not _levels.isEnabledFor(logging.DEBUG):
        return
    milliseconds = round((time.perf_counter() - began) * 1000, 3)
    write = access.debug if quiet else access.info
    write("http", method=method, path=path, status=status, duration_ms=milliseconds)
