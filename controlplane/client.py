"""The Python client: `ModelMoraClient`, and `AsyncModelMoraClient` with the same methods.

Every operation is described once, as a generator that yields calls and pauses and knows no HTTP
library. The two clients only differ in how they perform a step, so they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import httpx

from controlplane import client_background as background
from controlplane import client_lifecycle as lifecycle_operations
from controlplane import client_lock_operations as lock_operations
from controlplane import (
    client_memory,
    client_plugins,
    client_tuning,
    client_versions,
    client_watching,
)
from controlplane import client_operations as operations
from controlplane.client_http import (
    api_error,
    client_options,
    is_event_stream,
    read,
    request,
    server_url,
    stream,
    unreachable,
)
from controlplane.client_operations import vectors
from controlplane.client_sse import Listen
from controlplane.client_steps import Call, Pause, Steps
from controlplane.client_streaming import AsyncStreaming, InferEvent, Streaming
from controlplane.client_types import (
    InstallFailed,
    ModelMoraApiError,
    ModelMoraClientError,
    Progress,
    ServerUnreachable,
    WaitTimeout,
)

__all__ = [
    "AsyncModelMoraClient",
    "InferEvent",
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


T = TypeVar("T")
P = ParamSpec("P")


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


class ModelMoraClient(Streaming):
    """Talks to a ModelMora server; a context manager, usable from several threads.

    Every method raises `ModelMoraApiError` for what the server refuses and `ServerUnreachable`
    when there is no answer.
    """

    install = _sync(background.install)
    register = _sync(operations.register)
    download = _sync(background.download)
    tune = _sync(client_tuning.tune)
    begin_tuning = _sync(client_tuning.begin_tuning)
    list_operations = _sync(background.list_operations)
    get_operation = _sync(background.get_operation)
    follow_operation = _sync(background.follow_operation)
    cancel_operation = _sync(background.cancel_operation)
    sync_catalog = _sync(background.sync_catalog)
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
    plan_sync = _sync(lock_operations.plan_sync)
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
    plugins = _sync(client_plugins.plugins)

    def __init__(self, url: str | None = None) -> None:
        """`url` None takes MODELMORA_URL, else http://127.0.0.1:8000. ValueError if malformed."""
        self.url = server_url(url)
        self._http = httpx.Client(**client_options(self.url))

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
        with unreachable(self.url):
            response = self._http.request(**request(step))
        return read(step, response)

    def _listen(self, step: Listen) -> None:
        with unreachable(self.url), self._http.stream(**stream(step)) as response:
            if not is_event_stream(response):
                response.read()
                raise api_error(response)
            for line in response.iter_lines():
                if step.take(line):
                    return


class AsyncModelMoraClient(AsyncStreaming):
    """As `ModelMoraClient`, with coroutine methods; an async context manager."""

    install = _async(background.install)
    register = _async(operations.register)
    download = _async(background.download)
    tune = _async(client_tuning.tune)
    begin_tuning = _async(client_tuning.begin_tuning)
    list_operations = _async(background.list_operations)
    get_operation = _async(background.get_operation)
    follow_operation = _async(background.follow_operation)
    cancel_operation = _async(background.cancel_operation)
    sync_catalog = _async(background.sync_catalog)
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
    plan_sync = _async(lock_operations.plan_sync)
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
    plugins = _async(client_plugins.plugins)

    def __init__(self, url: str | None = None) -> None:
        """`url` None takes MODELMORA_URL, else http://127.0.0.1:8000. ValueError if malformed."""
        self.url = server_url(url)
        self._http = httpx.AsyncClient(**client_options(self.url))

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
        with unreachable(self.url):
            response = await self._http.request(**request(step))
        return read(step, response)

    async def _listen(self, step: Listen) -> None:
        with unreachable(self.url):
            async with self._http.stream(**stream(step)) as response:
                if not is_event_stream(response):
                    await response.aread()
                    raise api_error(response)
                async for line in response.aiter_lines():
                    if step.take(line):
                        return
