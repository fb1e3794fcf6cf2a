"""Every operation of the client, described once and without an HTTP library.

An operation is a generator: it yields calls and pauses, is sent their answers (or thrown their
errors) and returns its result. `client.py` performs the steps, waiting or awaiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import msgspec

from controlplane.client_sse import SILENCE_SECONDS, Follower, Listen
from controlplane.client_types import (
    Backup,
    CacheContent,
    CachePruned,
    CacheVerified,
    CatalogSync,
    EventPage,
    Health,
    InferResult,
    InstallFailed,
    LoadedModel,
    ModelInfo,
    ModelMoraApiError,
    ModelPage,
    ModelsHealth,
    Operation,
    OperationPage,
    Progress,
    Readiness,
    ServerUnreachable,
    SystemStatus,
    Unloaded,
    WaitTimeout,
)
from controlplane.errors import InvalidModelId
from controlplane.registry.model import ModelId

_POLL_SECONDS = 0.25
_OPERATIONS = "/api/v1/operations"

T = TypeVar("T")


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request.

    Attributes:
        result: what the body is decoded to; None when there is none, bytes as it is.
        content: a body that is not JSON, of `content_type`.
        also: statuses beyond 2xx whose body is an answer, not an error.
        timeout: seconds to wait for the answer; None waits as long as the server works, which
            has deadlines of its own.
    """

    method: str
    path: str
    result: type[T]
    json: Any = None
    content: bytes | None = None
    content_type: str = "application/json"
    params: dict[str, Any] = {}
    also: tuple[int, ...] = ()
    timeout: float | None = 30.0


class Pause(msgspec.Struct, frozen=True):
    seconds: float


Steps = Generator["Call[Any] | Pause | Listen", Any, T]
OnProgress = Callable[[Progress], None]
OnOperation = Callable[[Operation], None]


def ask(method: str, path: str, result: type[T], **more: Any) -> Steps[T]:
    """One call; `more` are further fields of `Call`."""
    answer: T = yield Call(method=method, path=path, result=result, **more)
    return answer


def model_path(model_id: str, action: str = "") -> str:
    """Address of a model, and of what can be done with it.

    Raises:
        ModelMoraApiError: `model_id` is none.
    """
    return f"/api/v1/models/{_spelled(model_id)}{action}"


def _spelled(model_id: str) -> str:
    # Checked here, because '..' or a second slash would address another endpoint.
    try:
        return quote(str(ModelId.from_any_spelling(model_id)))
    except InvalidModelId as error:
        raise ModelMoraApiError(error.code, error.message, error.details, 400) from error


def given(**fields: Any) -> dict[str, Any]:
    """Those fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def register(
    model_id: str, task_type: str | None = None, *, version: str | None = None, **fields: Any
) -> Steps[ModelInfo]:
    """Add a model without downloading it; `fields` as in POST /api/v1/models.

    Without `task_type` the server reads it from the model's own small files.
    """
    body = given(model_id=model_id, task_type=task_type, version=version, **fields)
    return ask("POST", "/api/v1/models", ModelInfo, json=body, timeout=None)


def list_models(
    *,
    task_type: str | None = None,
    status: str | None = None,
    search_text: str | None = None,
    page: int = 1,
    page_size: int = 20,
) -> Steps[ModelPage]:
    """One page of the catalog; `page` from 1, `page_size` 1 to 100."""
    filters = given(task_type=task_type, status=status, search_text=search_text)
    params = filters | {"page": page, "page_size": page_size}
    return ask("GET", "/api/v1/models", ModelPage, params=params)


def get(model_id: str, version: str | None = None) -> Steps[ModelInfo]:
    """One model of the catalog; told of `version`, else of the current one."""
    return ask("GET", model_path(model_id), ModelInfo, params=given(version=version))


def update(model_id: str, **changes: Any) -> Steps[ModelInfo]:
    """Change display_name, description, config or resource_requirements; None clears."""
    return ask("PUT", model_path(model_id), ModelInfo, json=changes)


def delete(model_id: str, *, force: bool = False) -> Steps[None]:
    """Remove a model and its files; `force` unloads it first."""
    params = {"force": "true"} if force else {}
    return ask("DELETE", model_path(model_id), type(None), params=params, timeout=None)


def download(
    model_id: str, version: str | None = None, *, trust_remote_code: bool = False
) -> Steps[Operation]:
    """Start the installation of a registered model; returns at once, with its operation."""
    body = given(version=version, trust_remote_code=trust_remote_code or None)
    return ask("POST", model_path(model_id, "/download"), Operation, json=body)


def list_operations(
    *,
    model_id: str | None = None,
    status: str | None = None,
    page: int = 1,
    page_size: int = 20,
) -> Steps[OperationPage]:
    """One page of operations, newest first; `status` may be `active` for those not ended."""
    params = given(model_id=model_id, status=status) | {"page": page, "page_size": page_size}
    return ask("GET", _OPERATIONS, OperationPage, params=params)


def get_operation(operation_id: str) -> Steps[Operation]:
    """One operation as it stands now."""
    return ask("GET", _operation_path(operation_id), Operation)


def cancel_operation(operation_id: str) -> Steps[Operation]:
    """Stop an operation; returns when it has stopped."""
    return ask("DELETE", _operation_path(operation_id), Operation, timeout=None)


def follow_operation(
    operation_id: str, on_operation: OnOperation | None = None, timeout: float | None = None
) -> Steps[Operation]:
    """Wait until an operation has ended, well or not, and return it.

    Args:
        on_operation: called with each state of it, as the server tells of it; where events do not
            come through (a proxy that collects them), about four times a second.
        timeout: seconds to wait; None waits for ever.

    Raises:
        WaitTimeout: it goes on at the server.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    events = True
    while True:
        if events:
            follower = Follower(on_operation, deadline)
            seconds = SILENCE_SECONDS if timeout is None else min(SILENCE_SECONDS, timeout + 0.1)
            path = _operation_path(operation_id, "/events")
            try:
                yield Listen(path=path, take=follower.take, timeout=seconds)
            except (ServerUnreachable, ModelMoraApiError):
                events = follower.last is not None
            if follower.last is not None and follower.last.finished:
                return follower.last
        found = yield from get_operation(operation_id)
        if on_operation is not None:
            on_operation(found)
        if found.finished:
            return found
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeout(
                f"{found.model_id} is still being installed ({found.phase or found.status}) "
                f"after {timeout:g} s."
            )
        yield Pause(_POLL_SECONDS)


def _operation_path(operation_id: str, more: str = "") -> str:
    return f"{_OPERATIONS}/{quote(operation_id, safe='')}{more}"


def sync_catalog(models: Sequence[dict[str, Any]], *, dry_run: bool = False) -> Steps[CatalogSync]:
    """Register and install what a catalog file lists; returns when that has begun.

    Args:
        models: entries as in POST /api/v1/catalog/sync.
        dry_run: change nothing, tell what would be done.
    """
    body = {"models": list(models), "dry_run": dry_run}
    return ask("POST", "/api/v1/catalog/sync", CatalogSync, json=body, timeout=None)


def load(model_id: str, version: str | None = None) -> Steps[LoadedModel]:
    """Load a model; returns when it serves."""
    path, body = model_path(model_id, "/load"), given(version=version)
    return ask("POST", path, LoadedModel, json=body, timeout=None)


def unload(model_id: str) -> Steps[Unloaded]:
    """Unload a model; returns when its memory is free."""
    return ask("POST", model_path(model_id, "/unload"), Unloaded, timeout=None)


def infer(
    model_id: str,
    input_data: dict[str, Any],
    parameters: dict[str, Any] | None = None,
    *,
    priority: str | None = None,
    timeout_seconds: float | None = None,
    version: str | None = None,
) -> Steps[InferResult]:
    """Run one inference; an unloaded model is loaded first.

    Args:
        input_data: by task; for txt2embed `{"text": "…"}` or `{"text": ["…", …]}`.
        parameters: by task; for txt2embed `{"normalize": true}`.
        priority: critical, high, medium (the default) or low.
        timeout_seconds: 1 to 600; None takes the server's setting.
    """
    more = given(
        parameters=parameters, priority=priority, timeout_seconds=timeout_seconds, version=version
    )
    path, body = f"/api/v1/infer/{_spelled(model_id)}", {"input_data": input_data, **more}
    return ask("POST", path, InferResult, json=body, timeout=None)


def embed(
    model_id: str,
    texts: str | Sequence[str],
    *,
    normalize: bool | None = None,
    version: str | None = None,
) -> Steps[list[list[float]]]:
    """Embeddings of `texts` (one text counts as a list of one): len(texts) vectors.

    `normalize` None leaves it to the model; True gives vectors of length 1.
    """
    text = [texts] if isinstance(texts, str) else list(texts)
    result = yield from infer(model_id, {"text": text}, given(normalize=normalize), version=version)
    return vectors(result)


def vectors(result: InferResult) -> list[list[float]]:
    """The embeddings in an inference's result, one per text."""
    output = result.output_data
    found = output["embeddings"] if "embeddings" in output else [output["embedding"]]
    return cast("list[list[float]]", found)


def status() -> Steps[SystemStatus]:
    """Memory, GPUs, Triton and the loaded models."""
    return ask("GET", "/api/v1/status", SystemStatus)


def settings() -> Steps[dict[str, Any]]:
    """The settings in force at the server."""
    return ask("GET", "/api/v1/settings", dict[str, Any])


def cache(limit: int = 100) -> Steps[CacheContent]:
    """Files that versions share, the largest `limit` of them listed, and broken-off downloads."""
    return ask("GET", "/api/v1/cache", CacheContent, params={"limit": limit}, timeout=None)


def prune_cache(*, dry_run: bool = False) -> Steps[CachePruned]:
    """Remove what no version uses; `dry_run` only says what that is."""
    body = {"dry_run": dry_run}
    return ask("POST", "/api/v1/cache/prune", CachePruned, json=body, timeout=None)


def verify_cache() -> Steps[CacheVerified]:
    """Hash every file of the cache; returns when all have been read."""
    return ask("POST", "/api/v1/cache/verify", CacheVerified, timeout=None)


def health() -> Steps[Health]:
    """Whether the server runs."""
    return ask("GET", "/health", Health)


def ready() -> Steps[Readiness]:
    """Whether everything the server needs works; does not raise when it does not."""
    return ask("GET", "/health/ready", Readiness, also=(503,))


def models_health() -> Steps[ModelsHealth]:
    """The loaded models' last test inferences."""
    return ask("GET", "/health/models", ModelsHealth)


def events(
    *,
    event_type: str | None = None,
    model_id: str | None = None,
    aggregate_id: str | None = None,
    aggregate_type: str | None = None,
    since: str | None = None,
    until: str | None = None,
    after: int | None = None,
    page: int = 1,
    page_size: int = 20,
) -> Steps[EventPage]:
    """A page of the event store, the latest first; with `after`, what followed, in order.

    Args:
        event_type: `model.loaded`, or the beginning of types: `model.*`.
        since, until: ISO 8601 with a zone.
        after: `sequence` of the last event that is known.
    """
    filters = given(
        event_type=event_type,
        model_id=model_id,
        aggregate_id=aggregate_id,
        aggregate_type=aggregate_type,
        since=since,
        until=until,
        after=after,
    )
    params = filters | {"page": page, "page_size": page_size}
    return ask("GET", "/api/v1/events", EventPage, params=params)


def backup(name: str | None = None) -> Steps[Backup]:
    """Back up the database to the server's `backups/`; returns when the copy is checked."""
    return ask("POST", "/api/v1/db/backup", Backup, json=given(name=name), timeout=None)


def wait_until_ready(timeout: float = 60.0) -> Steps[Readiness]:
    """Wait, at most `timeout` seconds, until the server is ready. Raises WaitTimeout."""
    deadline = time.monotonic() + timeout
    while True:
        why = "it does not answer"
        try:
            readiness = yield from ready()
            if readiness.status == "ready":
                return readiness
            why = f"its checks say {readiness.checks}"
        except ServerUnreachable:
            pass  # not listening yet
        if time.monotonic() >= deadline:
            raise WaitTimeout(f"ModelMora is not ready after {timeout:g} s: {why}.")
        yield Pause(_POLL_SECONDS)


def install(
    model_id: str,
    version: str | None = None,
    task_type: str | None = None,
    source_url: str | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
    *,
    trust_remote_code: bool = False,
) -> Steps[ModelInfo]:
    """Register the model if it is absent, download and convert it, wait until it is ready.

    Args:
        version: branch, tag or commit; None takes the current version, `main` for a new model. A
            further version is installed beside the others; the current one stays (see `use`).
        task_type: None has the server read it from the model's files.
        source_url: `file:///…` as the server sees it, `https://…` or `s3://…`; None takes the hub.
        on_progress: called with each progress; its last phase is `ready`.
        timeout: seconds to wait; None waits for ever.
        trust_remote_code: let the converter run code of the repository; the server has to allow it.

    Raises:
        InstallFailed: with the server's reason.
        WaitTimeout: the installation goes on at the server.
    """
    began = time.monotonic()
    trusted = {"trust_remote_code": True} if trust_remote_code else {}
    yield from _registered(model_id, version, task_type, source_url, trusted)
    operation = yield from download(model_id, version, trust_remote_code=trust_remote_code)

    def tell(state: Operation) -> None:
        if on_progress is not None and not state.finished:
            on_progress(state.progress)

    if not operation.finished:
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        operation = yield from follow_operation(operation.id, tell, left)
    model = yield from get(model_id, version)
    if operation.status != "succeeded":
        raise InstallFailed(model, operation.error.message if operation.error else None)
    if on_progress is not None:
        on_progress(Progress(phase="ready"))
    return model


def wait_installed(
    model_id: str,
    version: str | None,
    on_progress: OnProgress | None,
    deadline: float | None,
    timeout: float | None,
) -> Steps[ModelInfo]:
    """Wait until a version is ready, to a deadline on time.monotonic(). Raises as `install`."""
    while True:
        model = yield from get(model_id, version)
        if on_progress is not None:
            on_progress(model.progress or Progress(phase=model.status))
        if model.status == "ready":
            return model
        if model.status == "failed":
            raise InstallFailed(model)
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeout(f"{model_id} is still {model.status} after {timeout:g} s.")
        yield Pause(_POLL_SECONDS)


def _registered(
    model_id: str,
    version: str | None,
    task_type: str | None,
    source_url: str | None,
    trusted: dict[str, bool],
) -> Steps[None]:
    """Register the model if it is absent; refuse to take it from elsewhere than before."""
    try:
        model = yield from get(model_id)
    except ModelMoraApiError as error:
        if error.code != "MODEL_NOT_FOUND":
            raise
        yield from register(model_id, task_type, version=version, source_url=source_url, **trusted)
        return
    for name, asked in {"task_type": task_type, "source_url": source_url}.items():
        if asked is not None and asked != getattr(model, name):
            raise ModelMoraApiError(
                "MODEL_ALREADY_EXISTS",
                f"{model_id} is registered with {name} {getattr(model, name) or '(the hub)'}, "
                f"not {asked}. To change that: modelmora uninstall {model_id}",
                status=409,
            )
