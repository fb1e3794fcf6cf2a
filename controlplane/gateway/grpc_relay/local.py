"""Methods that are answered here, or of which only a part is Triton's.

Messages are read and written field by field (`gateway/wire.py`); the numbers are those of
KServe's `grpc_service.proto`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from controlplane.errors import InvalidInput
from controlplane.gateway import v2, v2_repository, wire
from controlplane.gateway.errors import NotOffered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controlplane.gateway.grpc_relay.calls import AnsweredCall

    Answer = Callable[[AnsweredCall, bytes], Awaitable[bytes]]

_EXTENSIONS = 3  # field of ServerMetadataResponse
_CUDA = (
    "CUDA shared memory is not offered: a handle of another process's GPU memory is not checked."
)
_LOGGING = "Triton's log settings belong to the operator: see MODELMORA_LOG_LEVEL."
_TRACING = "Triton's trace settings write files on the server; they belong to its operator."


async def _server_live(call: AnsweredCall, message: bytes) -> bytes:
    return wire.bool_field(1, value=True)


async def _server_ready(call: AnsweredCall, message: bytes) -> bytes:
    return wire.bool_field(1, value=v2.server_is_ready(call.relay.services))


async def _server_metadata(call: AnsweredCall, message: bytes) -> bytes:
    answer = await call.relay.upstream.ask("ServerMetadata", message, deadline=call.deadline)
    return wire.keep_texts(answer, _EXTENSIONS, v2.extensions(call.relay.services))


async def _model_ready(call: AnsweredCall, message: bytes) -> bytes:
    names = _names(message)
    ready = v2.model_is_ready(call.relay.services, names.model_name, names.model_version)
    return wire.bool_field(1, value=ready)


async def _statistics(call: AnsweredCall, message: bytes) -> bytes:
    # Without a name Triton tells of all models. No lease: to look at numbers must not load.
    names = _names(message)
    if names.model_name:
        servable = v2.resolve(call.relay.services, names.model_name, names.model_version)
        call.model_id = servable.model_id
        ours = wire.Names(servable.triton_name, str(servable.triton_version))
        message += wire.names_tail(names, ours)
    return await call.relay.upstream.ask("ModelStatistics", message, deadline=call.deadline)


async def _index(call: AnsweredCall, message: bytes) -> bytes:
    ready = any(value for value in _integers(message, 2))
    return b"".join(
        wire.bytes_field(
            1,
            wire.text_field(1, entry.name)
            + wire.text_field(2, entry.version)
            + wire.text_field(3, entry.state)
            + (wire.text_field(4, entry.reason) if entry.reason else b""),
        )
        for entry in v2_repository.index(call.relay.services, ready=ready)
    )


async def _load(call: AnsweredCall, message: bytes) -> bytes:
    call.end_at(None)  # as long as a load may take, which the repository's rules bound
    await v2_repository.load(call.relay.services, _text(message, 2), _parameters(message))
    return b""


async def _unload(call: AnsweredCall, message: bytes) -> bytes:
    call.end_at(None)
    await v2_repository.unload(call.relay.services, _text(message, 2), _parameters(message))
    return b""


async def _shared_memory(method: str, call: AnsweredCall, message: bytes) -> bytes:
    services = call.relay.services
    if not services.settings.allow_shared_memory:
        raise NotOffered(f"System {v2.SHARED_MEMORY_OFF}")
    key = tuple((n.encode(), v.encode()) for n, v in services.server.endpoints.grpc_metadata)
    return await call.relay.upstream.ask(method, message, deadline=call.deadline, metadata=key)


async def _refuse(why: str, call: AnsweredCall, message: bytes) -> bytes:
    raise NotOffered(why)


ANSWERS: dict[str, Answer] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ServerMetadata": _server_metadata,
    "ModelReady": _model_ready,
    "ModelStatistics": _statistics,
    "RepositoryIndex": _index,
    "RepositoryModelLoad": _load,
    "RepositoryModelUnload": _unload,
    **{
        f"SystemSharedMemory{act}": partial(_shared_memory, f"SystemSharedMemory{act}")
        for act in ("Status", "Register", "Unregister")
    },
    **{
        f"CudaSharedMemory{act}": partial(_refuse, _CUDA)
        for act in ("Status", "Register", "Unregister")
    },
    "LogSettings": partial(_refuse, _LOGGING),
    "TraceSetting": partial(_refuse, _TRACING),
}


def _names(message: bytes) -> wire.Names:
    try:
        return wire.read_names(message)
    except wire.MalformedMessage as error:
        raise _malformed(error) from None


def _text(message: bytes, number: int) -> str:
    values = _values(message, number)
    return str(values[-1], "utf-8", "replace") if values else ""


def _values(message: bytes, number: int) -> list[bytes]:
    try:
        return [
            message[f.start : f.end]
            for f in wire.fields(message)
            if f.number == number and f.wire_type == wire.LENGTH
        ]
    except wire.MalformedMessage as error:
        raise _malformed(error) from None


def _integers(message: bytes, number: int) -> list[int]:
    try:
        return [
            wire.decoded_varint(message, f.start)[0]
            for f in wire.fields(message)
            if f.number == number and f.wire_type == wire.VARINT
        ]
    except wire.MalformedMessage as error:
        raise _malformed(error) from None


def _parameters(message: bytes) -> dict[str, Any]:
    """The map of ModelRepositoryParameters (field 3) of a load or unload."""
    found: dict[str, Any] = {}
    for entry in _values(message, 3):
        for value in _values(entry, 2) or [b""]:
            found[_text(entry, 1)] = _parameter(value)
    return found


def _parameter(value: bytes) -> Any:
    """bool_param 1, int64_param 2, string_param 3, bytes_param 4."""
    if flags := _integers(value, 1):
        return bool(flags[-1])
    if numbers := _integers(value, 2):
        return numbers[-1]
    if _values(value, 4):
        return _values(value, 4)[-1]
    return _text(value, 3)


def _malformed(error: Exception) -> InvalidInput:
    return InvalidInput(f"The request is not a protobuf message: {error}.")
