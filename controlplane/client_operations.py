"""The client's operations on the catalog, on what is in memory and on the server itself.

What an operation is: `client_steps.py`. Those that begin or follow work in the background:
`client_background.py`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from controlplane.client_steps import Pause, Steps, ask, given, model_path, spelled
from controlplane.client_types import (
    Backup,
    CacheContent,
    CachePruned,
    CacheVerified,
    EventPage,
    Health,
    InferResult,
    LoadedModel,
    ModelInfo,
    ModelMoraApiError,
    ModelPage,
    ModelsHealth,
    Progress,
    Readiness,
    ServerUnreachable,
    SystemStatus,
    Unloaded,
    WaitTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.client_types import OnProgress

_POLL_SECONDS = 0.25


def register(
    model_id: str,
    task_type: str | None = None,
    *,
    version: str | None = None,
    on_progress: OnProgress | None = None,
    **fields: Any,
) -> Steps[ModelInfo]:
    """Add a model without downloading it; `fields` as in POST /api/v1/models.

    Without `task_type` the server reads it from the model's own small files; for an archive that
    takes its download, which is waited for. `on_progress` is told of it.
    """
    body = given(model_id=model_id, task_type=task_type, version=version, **fields)
    while True:
        try:
            return (yield from ask("POST", "/api/v1/models", ModelInfo, json=body, timeout=None))
        except ModelMoraApiError as error:
            if error.code != "SOURCE_BEING_READ":
                raise
            if on_progress is not None:
                text, fraction = error.details.get("progress", ""), error.details.get("fraction")
                on_progress(Progress(phase="downloading", message=text, fraction=fraction))
            yield Pause(0.2)  # the server holds each request for a while


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
        input_data: by task; for txt2embed `{"text": "…"}` or `{"text": ["…", …]}`; images and
            recordings as base64 (docs/inference.md, or GET /api/v1/models/…/schema).
        parameters: by task; for txt2embed `{"normalize": true}`.
        priority: critical, high, medium (the default) or low.
        timeout_seconds: 1 to 600; None takes the server's setting.
    """
    more = given(
        parameters=parameters, priority=priority, timeout_seconds=timeout_seconds, version=version
    )
    path, body = f"/api/v1/infer/{spelled(model_id)}", {"input_data": input_data, **more}
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
