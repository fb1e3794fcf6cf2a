"""Triton's gRPC service, relayed to the private server: bytes in, bytes out, only names are read.

The calls are served by a generic handler without serializers, so tensors are never decoded. What
can be known without Triton (liveness, readiness) is answered here.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
import structlog

from controlplane.errors import (
    InferenceTimeout,
    InvalidInput,
    ModelMoraError,
    ServiceUnavailable,
    StartupError,
)
from controlplane.gateway import v2, wire
from controlplane.gateway.errors import GENERIC_MESSAGE, GRPC_CODE, lookup, retry_after
from controlplane.gateway.trace import TRACE_HEADER, begin_trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from controlplane.gateway.services import Services
    from controlplane.registry.model import Servable

    Metadata = Sequence[tuple[str, str | bytes]]
    Call = Callable[["Incoming"], Awaitable[bytes]]

log = structlog.get_logger(__name__)
access = structlog.get_logger("modelmora.access")

T = TypeVar("T")

PROTOCOL = "v2_grpc"
SERVICE = "inference.GRPCInferenceService"
_PREFIX = f"/{SERVICE}/"
_NOT_FORWARDED = frozenset({"user-agent", "te", "content-type", "host", TRACE_HEADER})
_NOT_FORWARDED_PREFIXES = (":", "grpc-", "triton-grpc-protocol-")
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # On Linux two servers could otherwise share a port, each getting some of the calls.
    ("grpc.so_reuseport", 0),
]
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # The default waits up to two minutes before it looks whether a restarted server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


class Refused(Exception):
    """Triton's own error, to be passed on with code and text unchanged."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Incoming:
    """One call: its bytes, its metadata, and when its time is up on the event loop's clock."""

    def __init__(self, message: bytes, context: Any, timeout: float) -> None:
        self.message = message
        self.metadata: Metadata = tuple(context.invocation_metadata() or ())
        remaining = context.time_remaining()
        self.timeout = timeout if remaining is None else min(timeout, remaining)
        self.deadline = asyncio.get_running_loop().time() + self.timeout

    def value(self, key: str) -> str | None:
        """First text value of a metadata key."""
        found = next((v for k, v in self.metadata if k == key), None)
        return found if isinstance(found, str) else None


class GrpcGateway:
    """Serves GRPCInferenceService on a port of its own.

    Args:
        port: 0 takes any free one.
    """

    def __init__(self, services: Services, host: str, port: int) -> None:
        self._services = services
        self._host, self._port = host, port
        self._server: grpc.aio.Server | None = None
        self._upstream = Upstream(services)
        self._calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": partial(self._read, "ModelMetadata"),
            "ModelConfig": partial(self._read, "ModelConfig"),
            "ModelStatistics": self._statistics,
            "ModelInfer": self._infer,
        }

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            StartupError: the port cannot be had.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        server.add_generic_rpc_handlers((_Router(self._calls, self._serve),))
        try:
            port = int(server.add_insecure_port(f"{host}:{self._port}"))
        except RuntimeError as error:
            await server.stop(None)  # else it ends itself when collected, on a loop long closed
            raise StartupError(
                f"Port {self._port} on {self._host} cannot be opened for gRPC: is another "
                "server using it? Choose one with MODELMORA_GRPC_PORT."
            ) from error
        await server.start()
        self._server = server
        return port

    async def stop(self, grace: float) -> None:
        """Take no new calls, let the running ones end for `grace` seconds, then cut them off."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
        await self._upstream.close()

    # -- around every call -----------------------------------------------------------------

    async def _serve(self, method: str, call: Call, message: bytes, context: Any) -> bytes:
        """Trace, run, translate errors, log: what all calls have in common."""
        began = time.perf_counter()
        incoming = Incoming(message, context, self._services.settings.request_timeout)
        trace = begin_trace(incoming.value(TRACE_HEADER), incoming.value("traceparent"))
        trailing = [(TRACE_HEADER, trace)]
        code, text = grpc.StatusCode.CANCELLED, ""
        try:
            answer = await call(incoming)
            code = grpc.StatusCode.OK
        except Refused as refused:
            code, text = refused.code, refused.text
        except Exception as error:  # noqa: BLE001 the edge: whatever it is, it becomes a status
            code, text = _status_of(error, trailing)
        finally:  # a cancelled call is logged too
            _log_access(method, code, began)
        context.set_trailing_metadata(tuple(trailing))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, text, tuple(trailing))
        return answer

    # -- the calls -------------------------------------------------------------------------

    async def _server_live(self, _: Incoming) -> bytes:
        return wire.bool_field(1, value=True)

    async def _server_ready(self, _: Incoming) -> bytes:
        return wire.bool_field(1, value=v2.server_is_ready(self._services))

    async def _server_metadata(self, incoming: Incoming) -> bytes:
        answer = await self._upstream.call("ServerMetadata", incoming, incoming.message)
        return wire.keep_texts(answer, 3, v2.EXTENSIONS)

    async def _model_ready(self, incoming: Incoming) -> bytes:
        names = _decoded(wire.read_names, incoming.message)
        ready = v2.model_is_ready(self._services, names.model_name, names.model_version)
        return wire.bool_field(1, value=ready)

    async def _read(self, method: str, incoming: Incoming) -> bytes:
        servable, names = self._resolve(incoming.message)
        lease = self._services.scheduler.lease(servable, deadline=incoming.deadline)
        async with lease as leased:
            message = _readdressed(incoming.message, names, leased)
            return await self._upstream.call(method, incoming, message, leased)

    async def _statistics(self, incoming: Incoming) -> bytes:
        # Without a name Triton tells of all models. No lease: to look at numbers must not load.
        message = incoming.message
        if _decoded(wire.read_names, message).model_name:
            servable, names = self._resolve(message)
            message = _readdressed(message, names, servable)
        return await self._upstream.call("ModelStatistics", incoming, message)

    async def _infer(self, incoming: Incoming) -> bytes:
        services = self._services
        servable, names = self._resolve(incoming.message)
        with v2.counted(services, servable, PROTOCOL) as outcome:
            _check(incoming.message)
            lease = services.scheduler.lease(servable, deadline=incoming.deadline)
            async with lease as leased:
                message = _readdressed(incoming.message, names, leased)
                try:
                    return await self._upstream.call("ModelInfer", incoming, message, leased)
                except Refused as refused:
                    clients_fault = refused.code is grpc.StatusCode.INVALID_ARGUMENT
                    v2.note_refusal(services, servable, outcome, clients_fault=clients_fault)
                    raise

    def _resolve(self, message: bytes) -> tuple[Servable, wire.Names]:
        """The model a request names, and how it names it."""
        names = _decoded(wire.read_names, message)
        return v2.resolve(self._services, names.model_name, names.model_version), names


class Upstream:
    """The channel to the private server; a restarted server may listen elsewhere."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._url = ""
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}

    async def call(
        self, method: str, incoming: Incoming, message: bytes, servable: Servable | None = None
    ) -> bytes:
        """Relay one call.

        Raises:
            Refused: Triton's own error.
            InferenceTimeout: no answer within the call's time.
            ServiceUnavailable: the server cannot be reached, or went away meanwhile.
        """
        left = incoming.deadline - asyncio.get_running_loop().time()
        name = servable.model_id if servable else "Triton"
        if left <= 0:
            raise InferenceTimeout(name, incoming.timeout)
        relay = await self._method(method)
        try:
            # Ready or not: after a restart of the server the channel needs a moment to notice.
            answer: bytes = await relay(
                message, timeout=left, metadata=self._forwarded(incoming), wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error, name, incoming.timeout) from None
        return answer

    async def close(self) -> None:
        """Close the channel."""
        channel, self._channel, self._url = self._channel, None, ""
        self._methods.clear()
        if channel is not None:
            await channel.close()

    async def _method(self, method: str) -> Any:
        url = self._services.server.endpoints.grpc_url
        if url != self._url:
            await self.close()
            self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
            self._url = url
        if method not in self._methods and self._channel is not None:
            self._methods[method] = self._channel.unary_unary(_PREFIX + method)
        return self._methods[method]

    def _forwarded(self, incoming: Incoming) -> Metadata:
        secret = {name for name, _ in self._services.server.endpoints.grpc_metadata}
        return tuple(
            (key, value)
            for key, value in incoming.metadata
            if key not in _NOT_FORWARDED
            and key not in secret
            and not key.startswith(_NOT_FORWARDED_PREFIXES)
        )


class _Router(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method; refuses, in as many words, what is not served yet."""

    def __init__(self, calls: dict[str, Call], serve: Callable[..., Awaitable[bytes]]) -> None:
        self._handlers = {
            _PREFIX + name: grpc.unary_unary_rpc_method_handler(partial(serve, name, call))
            for name, call in calls.items()
        }

    def service(self, details: Any) -> Any:
        handler = self._handlers.get(details.method)
        if handler is None and details.method.startswith(_PREFIX):
            # Streaming both ways: such a handler answers before any message has come.
            return grpc.stream_stream_rpc_method_handler(partial(_refuse, details.method))
        return handler


async def _refuse(method: str, _: Any, context: Any) -> None:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED, f"{method.removeprefix(_PREFIX)} {v2.NOT_OFFERED}."
    )


def _readdressed(message: bytes, names: wire.Names, servable: Servable) -> bytes:
    """The request with the model's name and version as Triton knows them."""
    ours = wire.Names(servable.triton_name, str(servable.triton_version))
    return wire.rewrite_names(message, names, ours)


def _check(message: bytes) -> None:
    """Refuse what would end Triton's processes; everything else is Triton's to judge."""
    for shape in _decoded(wire.input_shapes, message):
        v2.check_shape(shape)
    v2.refuse_classification(_decoded(wire.output_parameters, message))


def _decoded(read: Callable[[bytes], T], message: bytes) -> T:
    try:
        return read(message)
    except wire.MalformedMessage as error:
        raise InvalidInput(f"The request is not a protobuf message: {error}.") from None


def _failure(error: grpc.aio.AioRpcError, name: str, timeout: float) -> Exception:
    """What an error of the relayed call means: ours and the network's, or Triton's own."""
    code, text = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return InferenceTimeout(name, round(timeout, 3))
    # Triton uses UNAVAILABLE for unknown models and timeouts in its queue; the library's own
    # texts tell of the connection.
    if code is grpc.StatusCode.UNAVAILABLE and _is_connection_loss(text):
        return ServiceUnavailable(f"Triton does not answer: {text}")
    return Refused(code, text)


def _is_connection_loss(text: str) -> bool:
    lowered = text.lower()
    return any(
        word in lowered
        for word in ("connect", "socket", "goaway", "broken pipe", "transport", "end of stream")
    )


def _status_of(error: Exception, trailing: list[tuple[str, str]]) -> tuple[grpc.StatusCode, str]:
    """Code and text of a failure; adds the error's code and Retry-After to `trailing`."""
    if not isinstance(error, ModelMoraError):
        log.error("unexpected error", error_code="INTERNAL_ERROR", exc_info=error)
        return grpc.StatusCode.INTERNAL, GENERIC_MESSAGE
    trailing.append(("x-error-code", error.code))
    if wait := retry_after(error):
        trailing.append(("retry-after", wait))
    return lookup(GRPC_CODE, error, grpc.StatusCode.INTERNAL), error.message


def _log_access(method: str, code: grpc.StatusCode, began: float) -> None:
    milliseconds = round((time.perf_counter() - began) * 1000, 3)
    quiet = method in ("ServerLive", "ServerReady") and code is grpc.StatusCode.OK
    write = access.debug if quiet else access.info
    write("grpc", method=method, status=code.name, duration_ms=milliseconds)
