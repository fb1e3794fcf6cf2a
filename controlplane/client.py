"""The Python client: `ModelMoraClient`, and `AsyncModelMoraClient` with the same methods.

Every operation is described once, as a generator that yields calls and pauses and knows no HTTP
library. The two clients only differ in how they perform a step, so they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import httpx
import msgspec

from controlplane import client_lifecycle as lifecycle_operations
from controlplane import client_lock_operations as lock_operations
from controlplane import client_memory, client_versions, client_watching
from controlplane import client_operations as operations
from controlplane.client_operations import Call, Pause, Steps, vectors
from controlplane.client_sse import Listen
from controlplane.client_types import (
    InstallFailed,
    ModelMoraApiError,
    ModelMoraClientError,
    Progress,
    ServerUnreachable,
    WaitTimeout,
)
from controlplane.settings import is_loopback

__all__ = [
    "AsyncModelMoraClient",
    "InstallFailed",
    "ModelMoraApiError",
    "ModelMoraClient",
    "ModelMoraClientError",
    "Progress",
    "ServerUnreachable",
    "WaitTimeout",
    "server_url",
    "vectors",
]

DEFAULT_URL = "http://127.0.0.1:8000"

T = TypeVar("T")
P = ParamSpec("P")


# -- answers -----------------------------------------------------------------------------------


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: dict[str, Any] | None = None
    trace_id: str | None = None


class _Envelope(msgspec.Struct):
    error: _ErrorBody


def _read(call: Call[T], response: httpx.Response) -> T:
    """The answer's body as the call's result type.

    Raises:
        ModelMoraApiError: for an error envelope, or UNEXPECTED_RESPONSE for anything else.
    """
    if not (response.is_success or response.status_code in call.also):
        raise _api_error(response)
    if call.result is type(None):
        return None
    if call.result is bytes:
        return cast("T", response.content)
    try:
        return msgspec.json.decode(response.content, type=call.result)
    except msgspec.DecodeError as error:
        raise _unexpected(response, str(error)) from error


def _api_error(response: httpx.Response) -> ModelMoraApiError:
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
def _unreachable(url: str) -> Iterator[None]:
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


def _client_options(url: str) -> dict[str, Any]:
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


def _request(call: Call[Any]) -> dict[str, Any]:
    timeout = httpx.Timeout(call.timeout, connect=5.0)
    request = {"method": call.method, "url": call.path, "params": call.params, "timeout": timeout}
    content = call.content if call.json is None else msgspec.json.encode(call.json)
    if content is not None:
        request["content"] = content
        request["headers"] = {"Content-Type": call.content_type}
    return request


def _stream(step: Listen) -> dict[str, Any]:
    timeout = httpx.Timeout(step.timeout, connect=5.0)
    headers = {"Accept": "text/event-stream"}
    return {"method": "GET", "url": step.path, "headers": headers, "timeout": timeout}


def _is_event_stream(response: httpx.Response) -> bool:
    kind = response.headers.get("Content-Type", "")
    return response.is_success and kind.startswith("text/event-stream")


def server_url(url: str | None = None) -> str:
    """`url`, else MODELMORA_URL, else http://127.0.0.1:8000; without a trailing slash."""
    return (url or os.environ.get("MODELMORA_URL") or DEFAULT_URL).rstrip("/")


# -- the clients -------------------------------------------------------------------------------


def _sync(describe: Callable[P, Steps[T]]) -> Callable[Concatenate[ModelMoraClient, P], T]:
    """The operation as a method that waits."""

    def method(self: ModelMoraClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(describe(*args, **kwargs))

    return _documented(method, describe)


def _async(
    describe: Callable[P, Steps[T]],
) -> Callable[Concatenate[AsyncModelMoraClient, P], Coroutine[Any, Any, T]]:
    """The operation as a coroutine method."""

    async def method(self: AsyncModelMoraClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(describe(*args, **kwargs))

    return _documented(method, describe)


F = TypeVar("F", bound=Callable[..., Any])


def _documented(method: F, describe: Callable[..., Any]) -> F:
    """Give the method the operation's name, docstring and parameters, for help() and editors."""
    functools.update_wrapper(method, describe)
    method.__name__ = describe.__name__.removesuffix("_models")
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(describe)
    parameters = [own, *signature.parameters.values()]
    method.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return method


class ModelMoraClient:
    """Talks to a ModelMora server; a context manager, usable from several threads.

    Every method raises `ModelMoraApiError` for what the server refuses and `ServerUnreachable`
    when there is no answer.
    """

    install = _sync(operations.install)
    register = _sync(operations.register)
    download = _sync(operations.download)
    list_operations = _sync(operations.list_operations)
    get_operation = _sync(operations.get_operation)
    follow_operation = _sync(operations.follow_operation)
    cancel_operation = _sync(operations.cancel_operation)
    sync_catalog = _sync(operations.sync_catalog)
    list = _sync(operations.list_models)
    get = _sync(operations.get)
    update = _sync(operations.update)
    delete = _sync(operations.delete)
    load = _sync(operations.load)
    unload = _sync(operations.unload)
    infer = _sync(operations.infer)
    embed = _sync(operations.embed)
    status = _sync(operations.status)
    settings = _sync(operations.settings)
    cache = _sync(operations.cache)
    prune_cache = _sync(operations.prune_cache)
    verify_cache = _sync(operations.verify_cache)
    health = _sync(operations.health)
    ready = _sync(operations.ready)
    models_health = _sync(operations.models_health)
    events = _sync(operations.events)
    follow_events = _sync(client_watching.follow_events)
    lifecycle = _sync(client_watching.lifecycle)
    lifecycle_events = _sync(client_watching.lifecycle_events)
    model_status = _sync(client_watching.model_status)
    metrics = _sync(client_watching.metrics)
    backup = _sync(operations.backup)
    wait_until_ready = _sync(operations.wait_until_ready)
    create_lock = _sync(lock_operations.create_lock)
    update_lock = _sync(lock_operations.update_lock)
    locks = _sync(lock_operations.locks)
    get_lock = _sync(lock_operations.get_lock)
    delete_lock = _sync(lock_operations.delete_lock)
    lock_revisions = _sync(lock_operations.lock_revisions)
    rollback_lock = _sync(lock_operations.rollback_lock)
    export_lock = _sync(lock_operations.export_lock)
    import_lock = _sync(lock_operations.import_lock)
    compare_lock = _sync(lock_operations.compare_lock)
    sync_lock = _sync(lock_operations.sync_lock)
    verify_lock = _sync(lock_operations.verify_lock)
    verify_lock_file = _sync(lock_operations.verify_lock_file)
    versions = _sync(client_versions.versions)
    version = _sync(client_versions.version)
    add_version = _sync(client_versions.add_version)
    use = _sync(client_versions.use)
    remove_version = _sync(client_versions.remove_version)
    upgrade = _sync(client_versions.upgrade)
    downgrade = _sync(client_versions.downgrade)
    pin = _sync(client_versions.pin)
    unpin = _sync(client_versions.unpin)
    outdated = _sync(client_versions.outdated)
    keep = _sync(lifecycle_operations.keep)
    release = _sync(lifecycle_operations.release)
    warm_up = _sync(lifecycle_operations.warm_up)
    plan = _sync(lifecycle_operations.plan)
    memory = _sync(client_memory.memory)

    def __init__(self, url: str | None = None) -> None:
        """`url` None takes MODELMORA_URL, else http://127.0.0.1:8000. ValueError if malformed."""
        self.url = server_url(url)
        self._http = httpx.Client(**_client_options(self.url))

    def __enter__(self) -> ModelMoraClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _run(self, steps: Steps[T]) -> T:
        answer, error = None, None
        while True:
            try:
                step = steps.throw(error) if error else steps.send(answer)
            except StopIteration as end:
                return cast("T", end.value)
            answer, error = None, None
            try:
                answer = self._perform(step)
            except ModelMoraClientError as failure:
                error = failure

    def _perform(self, step: Call[Any] | Pause | Listen) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Listen):
            return self._listen(step)
        with _unreachable(self.url):
            response = self._http.request(**_request(step))
        return _read(step, response)

    def _listen(self, step: Listen) -> None:
        with _unreachable(self.url), self._http.stream(**_stream(step)) as response:
            if not _is_event_stream(response):
                response.read()
                raise _api_error(response)
            for line in response.iter_lines():
                if step.take(line):
                    return


class AsyncModelMoraClient:
    """As `ModelMoraClient`, with coroutine methods; an async context manager."""

    install = _async(operations.install)
    register = _async(operations.register)
    download = _async(operations.download)
    list_operations = _async(operations.list_operations)
    get_operation = _async(operations.get_operation)
    follow_operation = _async(operations.follow_operation)
    cancel_operation = _async(operations.cancel_operation)
    sync_catalog = _async(operations.sync_catalog)
    list = _async(operations.list_models)
    get = _async(operations.get)
    update = _async(operations.update)
    delete = _async(operations.delete)
    load = _async(operations.load)
    unload = _async(operations.unload)
    infer = _async(operations.infer)
    embed = _async(operations.embed)
    status = _async(operations.status)
    settings = _async(operations.settings)
    cache = _async(operations.cache)
    prune_cache = _async(operations.prune_cache)
    verify_cache = _async(operations.verify_cache)
    health = _async(operations.health)
    ready = _async(operations.ready)
    models_health = _async(operations.models_health)
    events = _async(operations.events)
    follow_events = _async(client_watching.follow_events)
    lifecycle = _async(client_watching.lifecycle)
    lifecycle_events = _async(client_watching.lifecycle_events)
    model_status = _async(client_watching.model_status)
    metrics = _async(client_watching.metrics)
    backup = _async(operations.backup)
    wait_until_ready = _async(operations.wait_until_ready)
    create_lock = _async(lock_operations.create_lock)
    update_lock = _async(lock_operations.update_lock)
    locks = _async(lock_operations.locks)
    get_lock = _async(lock_operations.get_lock)
    delete_lock = _async(lock_operations.delete_lock)
    lock_revisions = _async(lock_operations.lock_revisions)
    rollback_lock = _async(lock_operations.rollback_lock)
    export_lock = _async(lock_operations.export_lock)
    import_lock = _async(lock_operations.import_lock)
    compare_lock = _async(lock_operations.compare_lock)
    sync_lock = _async(lock_operations.sync_lock)
    verify_lock = _async(lock_operations.verify_lock)
    verify_lock_file = _async(lock_operations.verify_lock_file)
    versions = _async(client_versions.versions)
    version = _async(client_versions.version)
    add_version = _async(client_versions.add_version)
    use = _async(client_versions.use)
    remove_version = _async(client_versions.remove_version)
    upgrade = _async(client_versions.upgrade)
    downgrade = _async(client_versions.downgrade)
    pin = _async(client_versions.pin)
    unpin = _async(client_versions.unpin)
    outdated = _async(client_versions.outdated)
    keep = _async(lifecycle_operations.keep)
    release = _async(lifecycle_operations.release)
    warm_up = _async(lifecycle_operations.warm_up)
    plan = _async(lifecycle_operations.plan)
    memory = _async(client_memory.memory)

    def __init__(self, url: str | None = None) -> None:
        """`url` None takes MODELMORA_URL, else http://127.0.0.1:8000. ValueError if malformed."""
        self.url = server_url(url)
        self._http = httpx.AsyncClient(**_client_options(self.url))

    async def __aenter__(self) -> AsyncModelMoraClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _run(self, steps: Steps[T]) -> T:
        answer, error = None, None
        while True:
            try:
                step = steps.throw(error) if error else steps.send(answer)
            except StopIteration as end:
                return cast("T", end.value)
            answer, error = None, None
            try:
                answer = await self._perform(step)
            except ModelMoraClientError as failure:
                error = failure

    async def _perform(self, step: Call[Any] | Pause | Listen) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Listen):
            return await self._listen(step)
        with _unreachable(self.url):
            response = await self._http.request(**_request(step))
        return _read(step, response)

    async def _listen(self, step: Listen) -> None:
        with _unreachable(self.url):
            async with self._http.stream(**_stream(step)) as response:
                if not _is_event_stream(response):
                    await response.aread()
                    raise _api_error(response)
                async for line in response.aiter_lines():
                    if step.take(line):
                        return
