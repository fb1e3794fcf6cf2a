"""Triton's HTTP protocol under /v2: a raw ASGI application that relays bytes to the private server.

`{name}` is a model id (plain or percent-encoded) or a Triton name; `{version}` one of our version
strings or a Triton number. Infer, metadata and configuration load a model that is not loaded, as
an unmodified client asks for its metadata first; `ready` therefore means "would be served".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec
import structlog

from controlplane.errors import InvalidInput
from controlplane.gateway import v2, v2_repository
from controlplane.gateway.asgi import Reply, body_of
from controlplane.gateway.errors import (
    ClientGone,
    MethodNotAllowed,
    NotOffered,
    UnknownRoute,
)
from controlplane.gateway.v2_answers import error_reply
from controlplane.gateway.v2_direct import Direct
from controlplane.gateway.v2_paths import (
    READS,
    Target,
    is_shared_memory_call,
    parse_control,
    parse_target,
    upstream_path,
)
from controlplane.gateway.v2_relay import Relay, request_head, whole_reply
from controlplane.gateway.v2_runs import Run, Runs, Sent

if TYPE_CHECKING:
    from controlplane.gateway.asgi import Receive, Scope, Send
    from controlplane.gateway.services import Services
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

_REFUSED = {
    "cudasharedmemory": "CUDA shared memory is not offered: a client that names device memory "
    "would have Triton read and write it.",
    "trace": "The trace settings are the operator's: they make Triton write files on the server.",
    "logging": "The log settings are the operator's: they make Triton write files on the server.",
}


class Call(NamedTuple):
    """One request in ASGI's terms; `path` is still percent-encoded, without /v2/ and query."""

    scope: Scope
    receive: Receive
    send: Send
    path: str

    @property
    def method(self) -> str:
        return str(self.scope["method"])


class V2Http:
    """The ASGI application. `close` must be called on the event loop it has run on.

    Attributes:
        direct: the way around ASGI for what comes all the time.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._relay = Relay(services)
        self._runs = Runs(services, self._relay)
        self.direct = Direct(services, self._relay)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure comes out as Triton's `{"error": "…"}`."""
        # raw_path tells an encoded slash from a plain one; not every ASGI server gives it.
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        path = raw.decode("latin-1").partition("?")[0].removeprefix("/v2").strip("/")
        try:
            reply = await self._answer(Call(scope, receive, send, path))
        except ClientGone:
            log.info("client gone", path=scope["path"])
            return
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes an answer
            reply = error_reply(error)
        if reply is not None:
            await reply.send(send)

    async def close(self) -> None:
        """Close the connections to the private server."""
        self._relay.close()

    async def _answer(self, call: Call) -> Reply | None:
        first, _, rest = call.path.partition("/")
        if first in _REFUSED:
            raise NotOffered(_REFUSED[first])
        if first == "models" and rest:
            return await self._model_route(call, rest)
        if first == "repository":
            return await self._control(call, rest)
        if first == "systemsharedmemory":
            return await self._shared_memory(call, rest)
        if call.path not in ("", "health/live", "health/ready"):
            raise UnknownRoute(f"There is no /v2/{call.path}.")
        _require(call, "GET")
        if call.path == "":
            return await self._server_metadata()
        ready = call.path == "health/live" or v2.server_is_ready(self._services)
        return Reply(200) if ready else _not_ready("Triton is not ready.")

    # -- models ------------------------------------------------------------------------------

    async def _model_route(self, call: Call, path: str) -> Reply | None:
        if path == "stats":
            _require(call, "GET")
            return await self._read("/v2/models/stats", "Triton", self._terms())
        target = parse_target(path)
        if target.action == "trace":
            raise NotOffered(_REFUSED["trace"])
        if target.action not in READS:
            _require(call, "POST")
            run = Run(target, call.scope, call.receive, call.send)
            done = await self._runs.run(run)
            return None if isinstance(done, Sent) else done
        _require(call, "GET")
        if target.action == "ready":
            return self._model_ready(target)
        servable = v2.resolve(self._services, target.name, target.version)
        return await self._read_model(servable, target.action)

    def _model_ready(self, target: Target) -> Reply:
        if not v2.server_is_ready(self._services):
            return _not_ready("Triton is not ready.")
        v2.resolve(self._services, target.name, target.version)
        return Reply(200)

    async def _read_model(self, servable: Servable, action: str) -> Reply:
        """Metadata, configuration or statistics of one model, as Triton tells them."""
        terms = self._terms()
        if action == "stats":  # to look at numbers must not keep a model in memory
            return await self._read(upstream_path(servable) + "/stats", servable.model_id, terms)

        async def send(leased: Servable) -> Reply:
            path = upstream_path(leased) + (f"/{action}" if action else "")
            head = request_head("GET", path, [], None)
            return await whole_reply(await self._relay.ask(head, name=leased.model_id, terms=terms))

        return await v2.served(self._services, servable, send, terms)

    async def _read(self, path: str, name: str, terms: v2.Terms) -> Reply:
        """What Triton answers to a request that needs no model."""
        return await self._forward(request_head("GET", path, [], None), b"", name, terms)

    async def _forward(self, head: bytes, body: bytes, name: str, terms: v2.Terms) -> Reply:
        try:
            return await whole_reply(await self._relay.ask(head, body, name=name, terms=terms))
        except v2.AnswerLost as lost:
            raise lost.error from None

    async def _server_metadata(self) -> Reply:
        reply = await self._read("/v2", "Triton", self._terms())
        if reply.status != 200:
            return reply
        metadata = msgspec.json.decode(reply.body, type=dict[str, Any])
        ours = v2.extensions(self._services)
        offered = [name for name in metadata.get("extensions", ()) if name in ours]
        return Reply.json(200, metadata | {"extensions": offered})

    # -- what the operator of a Triton does with it ------------------------------------------

    async def _control(self, call: Call, path: str) -> Reply:
        """The model repository extension."""
        control = parse_control(path)
        _require(call, "POST")
        document = await self._document(call)
        if control.action == "index":
            ready = document.get("ready", False)
            if not isinstance(ready, bool):
                raise InvalidInput("'ready' must be true or false.", field="ready")
            return Reply.json(200, v2_repository.index(self._services, ready=ready))
        parameters = document.get("parameters", {})
        if not isinstance(parameters, dict):
            raise InvalidInput("'parameters' must be an object.", field="parameters")
        change = v2_repository.load if control.action == "load" else v2_repository.unload
        await change(self._services, control.name, parameters)
        return Reply(200)

    async def _shared_memory(self, call: Call, path: str) -> Reply:
        """The system shared memory extension, with the secret that opens it at Triton."""
        if not self._services.settings.allow_shared_memory:
            raise NotOffered(v2.SHARED_MEMORY_OFF[0].upper() + v2.SHARED_MEMORY_OFF[1:])
        if not is_shared_memory_call(call.method, path):
            raise UnknownRoute(f"There is no {call.method} /v2/systemsharedmemory/{path}.")
        body = b""
        if path.endswith("/register"):
            body = _region(await self._document(call))
        head = request_head(
            call.method, f"/v2/systemsharedmemory/{path}", self._relay.secret(), len(body)
        )
        return await self._forward(head, body, "Triton", self._terms())

    async def _document(self, call: Call) -> dict[str, Any]:
        """The request's JSON object; none is an empty one."""
        limit = self._services.settings.max_request_bytes
        body = await body_of(call.scope, call.receive, limit)
        try:
            return msgspec.json.decode(body, type=dict[str, Any]) if body.strip() else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"The body is not a JSON object: {error}.") from None

    def _terms(self) -> v2.Terms:
        return v2.terms(self._services.settings.request_timeout)


class _Region(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


def _region(document: dict[str, Any]) -> bytes:
    """The body of a registration, checked."""
    try:
        region = msgspec.convert(document, _Region)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"The shared memory region is not valid: {error}") from None
    if region.byte_size <= 0 or region.offset < 0:
        raise InvalidInput("byte_size must be above 0 and offset not below 0.", field="byte_size")
    return msgspec.json.encode(region)


def _not_ready(message: str) -> Reply:
    reply = Reply.json(503, {"error": message})
    reply.headers.append((b"retry-after", b"2"))
    return reply


def _require(call: Call, allowed: str) -> None:
    if call.method != allowed and not (call.method == "HEAD" and allowed == "GET"):
        raise MethodNotAllowed(f"{call.method} is not allowed here; use {allowed}.")
