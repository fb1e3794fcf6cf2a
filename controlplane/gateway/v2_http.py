"""Triton's HTTP protocol under /v2: a raw ASGI application that relays bytes to the private server.

`{name}` is a model id (plain or percent-encoded) or a Triton name; `{version}` one of our version
strings or a Triton number. Infer, metadata and configuration load a model that is not loaded, as
an unmodified client asks for its metadata first; `ready` therefore means "would be served".
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import aiohttp
import msgspec
import structlog

from controlplane.errors import (
    InferenceTimeout,
    ModelMoraError,
    ServiceUnavailable,
)
from controlplane.gateway import v2
from controlplane.gateway.asgi import Reply, body_of, header
from controlplane.gateway.errors import (
    GENERIC_MESSAGE,
    V2_HTTP_STATUS,
    MethodNotAllowed,
    NotOffered,
    UnknownRoute,
    lookup,
    retry_after,
)
from controlplane.gateway.v2_checks import Checked, check_infer_body

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from controlplane.gateway.asgi import Receive, Scope, Send
    from controlplane.gateway.services import Services
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

PROTOCOL = "v2_http"
_LARGE = 2**19
_HEADER_LENGTH = "inference-header-content-length"
# RFC 9110 §7.6.1, and what the relay writes itself. A client must not be able to bring the
# header that opens the private server's control calls.
_NOT_FORWARDED = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "proxy-authenticate", "proxy-authorization", "expect", "date", "server"),
        *("host", "content-length", "content-encoding", _HEADER_LENGTH),
    }
)
_NOT_RETURNED = _NOT_FORWARDED - {"content-encoding", _HEADER_LENGTH}
_READS = frozenset({"", "ready", "config", "stats"})
_LATER_ACTIONS = frozenset({"generate", "generate_stream", "trace"})
_LATER_ROUTES = frozenset(
    {"repository", "systemsharedmemory", "cudasharedmemory", "trace", "logging"}
)
_BARE_CALLS = (["infer"], ["generate"], ["generate_stream"])
_ACTIONS = _READS | _LATER_ACTIONS | {"infer"}


class Target(NamedTuple):
    """What a path below /v2/models/ speaks of; `action` is empty for metadata."""

    name: str
    version: str | None
    action: str


def parse_target(path: str) -> Target:
    """Read a still percent-encoded path below /v2/models/.

    A model id may come as one segment (encoded, or as Triton name) or as two; a version string
    with slashes as one segment or several.

    Raises:
        UnknownRoute: it names no model, or something below a model that Triton does not have.
    """
    parts = [unquote(part) for part in path.strip("/").split("/")]
    # Twice: a client that encodes an id which its user had encoded already means the same model.
    name, rest = unquote(parts[0]), parts[1:]
    # A bare name followed by nothing but "infer" reads better as a name without organization.
    is_bare = "/" not in name and "--" not in name
    if is_bare and rest and rest[0] != "versions" and rest not in _BARE_CALLS:
        name, rest = f"{name}/{rest[0]}", rest[1:]
    version = None
    if rest[:1] == ["versions"]:
        ends_in_action = len(rest) > 2 and rest[-1] in _ACTIONS
        version = "/".join(rest[1:-1] if ends_in_action else rest[1:])
        rest = rest[-1:] if ends_in_action else []
    action = rest[0] if rest else ""
    if not name or version == "" or action not in _ACTIONS or len(rest) > 1 + (action == "trace"):
        raise UnknownRoute(f"There is no /v2/models/{unquote(path)}.")
    return Target(name, version, action)


class V2Http:
    """The ASGI application. `close` must be called on the event loop it has run on."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure comes out as Triton's `{"error": "…"}`."""
        try:
            reply = await self._answer(scope, receive)
        except v2.ClientGone:
            log.info("client gone", path=scope["path"])
            return
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes an answer
            reply = error_reply(error)
        await reply.send(send)

    async def close(self) -> None:
        """Close the connections to the private server."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        # raw_path tells an encoded slash from a plain one; not every ASGI server gives it.
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        path = raw.decode("latin-1").partition("?")[0].removeprefix("/v2").strip("/")
        method, first = scope["method"], path.partition("/")[0]
        if first in _LATER_ROUTES:
            raise NotOffered(f"/v2/{path} {v2.NOT_OFFERED}.")
        if first == "models" and path != "models":
            return await self._model_route(method, path.removeprefix("models/"), scope, receive)
        if path not in ("", "health/live", "health/ready"):
            raise UnknownRoute(f"There is no /v2/{path}.")
        _require(method, "GET")
        if path == "":
            return await self._server_metadata()
        ready = path == "health/live" or v2.server_is_ready(self._services)
        return Reply(200) if ready else _not_ready("Triton is not ready.")

    async def _model_route(self, method: str, path: str, scope: Scope, receive: Receive) -> Reply:
        if path == "stats":
            _require(method, "GET")
            return await self._relay("GET", "/v2/models/stats", timeout=self._timeout)
        target = parse_target(path)
        if target.action in _LATER_ACTIONS:
            raise NotOffered(f"{target.action!r} {v2.NOT_OFFERED}.")
        _require(method, "POST" if target.action == "infer" else "GET")
        if target.action == "ready":
            return self._model_ready(target)
        servable = v2.resolve(self._services, target.name, target.version)
        if target.action == "infer":
            body = await body_of(scope, receive, self._services.settings.max_request_bytes)
            return await _unless_gone(self._infer(target, scope, body), receive)
        return await _unless_gone(self._read(servable, target.action), receive)

    def _model_ready(self, target: Target) -> Reply:
        if not v2.server_is_ready(self._services):
            return _not_ready("Triton is not ready.")
        v2.resolve(self._services, target.name, target.version)
        return Reply(200)

    async def _read(self, servable: Servable, action: str) -> Reply:
        """Metadata, configuration or statistics of one model, as Triton tells them."""
        if action == "stats":  # to look at numbers must not keep a model in memory
            path = _model_path(servable) + "/stats"
            return await self._relay("GET", path, timeout=self._timeout, servable=servable)
        deadline = asyncio.get_running_loop().time() + self._timeout
        async with self._services.scheduler.lease(servable, deadline=deadline) as leased:
            left = v2.seconds_left(leased, deadline, self._timeout)
            path = _model_path(leased) + (f"/{action}" if action else "")
            return await self._relay("GET", path, timeout=left, servable=leased)

    async def _infer(self, target: Target, scope: Scope, body: bytes) -> Reply:
        services, timeout = self._services, self._timeout
        # Again: the current version may have changed while the body came.
        servable = v2.resolve(services, target.name, target.version)
        with v2.counted(services, servable, PROTOCOL) as outcome:
            checked = check_infer_body(
                body,
                header_length=header(scope, _HEADER_LENGTH),
                encoding=header(scope, "content-encoding"),
                limit=services.settings.max_request_bytes,
            )
            outcome.batch_size = checked.batch_size
            deadline = asyncio.get_running_loop().time() + timeout
            async with services.scheduler.lease(servable, deadline=deadline) as leased:
                reply = await self._relay(
                    "POST",
                    _model_path(leased) + "/infer",
                    headers=self._forwarded(scope, checked),
                    body=checked.body,
                    timeout=v2.seconds_left(leased, deadline, timeout),
                    servable=leased,
                )
            if reply.status >= 400:
                v2.note_refusal(services, servable, outcome, clients_fault=reply.status < 500)
        return reply

    def _forwarded(self, scope: Scope, checked: Checked) -> dict[str, str]:
        secret = {name.lower() for name in self._services.server.endpoints.http_headers}
        headers = {
            key: value.decode("latin-1")
            for raw, value in scope["headers"]
            if (key := raw.decode("latin-1").lower()) not in _NOT_FORWARDED and key not in secret
        }
        if checked.header_length is not None:
            headers[_HEADER_LENGTH] = str(checked.header_length)
        return headers

    async def _server_metadata(self) -> Reply:
        reply = await self._relay("GET", "/v2", timeout=self._timeout)
        if reply.status != 200:
            return reply
        metadata = msgspec.json.decode(reply.body, type=dict[str, Any])
        offered = [name for name in metadata.get("extensions", ()) if name in v2.EXTENSIONS]
        return Reply.json(200, metadata | {"extensions": offered})

    @property
    def _timeout(self) -> float:
        return self._services.settings.request_timeout

    async def _relay(
        self,
        method: str,
        path: str,
        *,
        timeout: float,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        servable: Servable | None = None,
    ) -> Reply:
        """Send one request to the private server and take its whole answer as it is.

        Raises:
            InferenceTimeout: no answer within `timeout` seconds.
            ServiceUnavailable: the server cannot be reached, or went away meanwhile.
        """
        if self._session is None:
            self._session = _new_session()
        url = self._services.server.endpoints.http_url + path
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=_in_pieces(body),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as answer:
                content = await answer.read()
        except asyncio.TimeoutError as error:
            name = servable.model_id if servable else "Triton"
            raise InferenceTimeout(name, round(timeout, 3)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceUnavailable(f"Triton does not answer: {error}") from error
        returned = [
            (name.lower(), value)
            for name, value in answer.raw_headers
            if name.lower().decode("latin-1") not in _NOT_RETURNED
        ]
        return Reply(answer.status, content, returned)


def error_reply(error: Exception) -> Reply:
    """A failure in Triton's own form (KServe v2, `$inference_error_response`)."""
    if not isinstance(error, ModelMoraError):
        log.error("unexpected error", error_code="INTERNAL_ERROR", exc_info=error)
        return Reply.json(500, {"error": GENERIC_MESSAGE})
    reply = Reply.json(lookup(V2_HTTP_STATUS, error, 500), {"error": error.message})
    if wait := retry_after(error):
        reply.headers.append((b"retry-after", wait.encode()))
    return reply


def _not_ready(message: str) -> Reply:
    reply = Reply.json(503, {"error": message})
    reply.headers.append((b"retry-after", b"2"))
    return reply


def _require(method: str, allowed: str) -> None:
    if method != allowed and not (method == "HEAD" and allowed == "GET"):
        raise MethodNotAllowed(f"{method} is not allowed here; use {allowed}.")


def _model_path(servable: Servable) -> str:
    return f"/v2/models/{quote(servable.triton_name)}/versions/{servable.triton_version}"


def _in_pieces(body: bytes | None) -> bytes | io.BytesIO | None:
    """A large body as a file: aiohttp writes bytes at one go, blocking the event loop."""
    return io.BytesIO(body) if body and len(body) > _LARGE else body


def _new_session() -> aiohttp.ClientSession:
    """A pool of connections that passes bytes on as they are.

    No limit: how many requests run at once is the lease's and Triton's business.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _unless_gone(work: Coroutine[Any, Any, Reply], receive: Receive) -> Reply:
    """Run `work`; cancel it, and with it the call upstream, when the client disconnects.

    Raises:
        ClientGone: the client did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise v2.ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        # The lease is released before this returns, also when we ourselves are being cancelled.
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
