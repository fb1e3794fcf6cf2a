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

from controlplane.client_types import (
    DownloadAccepted,
    Health,
    InferResult,
    InstallFailed,
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
from controlplane.errors import InvalidModelId
from controlplane.registry.model import ModelId

_POLL_SECONDS = 0.25

T = TypeVar("T")


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request.

    Attributes:
        result: what the body is decoded to; None when there is none.
        also: statuses beyond 2xx whose body is an answer, not an error.
        timeout: seconds to wait for the answer; None waits as long as the server works, which
            has deadlines of its own.
    """

    method: str
    path: str
    result: type[T]
    json: Any = None
    params: dict[str, Any] = {}
    also: tuple[int, ...] = ()
    timeout: float | None = 30.0


class Pause(msgspec.Struct, frozen=True):
    seconds: float


Steps = Generator["Call[Any] | Pause", Any, T]
OnProgress = Callable[[Progress], None]


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
    model_id: str, task_type: str = "txt2embed", *, version: str | None = None, **fields: Any
) -> Steps[ModelInfo]:
    """Add a model without downloading it; `fields` as in POST /api/v1/models."""
    body = given(model_id=model_id, task_type=task_type, version=version, **fields)
    return ask("POST", "/api/v1/models", ModelInfo, json=body)


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


def download(model_id: str, version: str | None = None) -> Steps[DownloadAccepted]:
    """Start the installation of a registered model; returns at once.

    A version that is not registered is added beside the others.
    """
    body = given(version=version)
    return ask("POST", model_path(model_id, "/download"), DownloadAccepted, json=body)


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


def health() -> Steps[Health]:
    """Whether the server runs."""
    return ask("GET", "/health", Health)


def ready() -> Steps[Readiness]:
    """Whether everything the server needs works; does not raise when it does not."""
    return ask("GET", "/health/ready", Readiness, also=(503,))


def models_health() -> Steps[ModelsHealth]:
    """The loaded models' last test inferences."""
    return ask("GET", "/health/models", ModelsHealth)


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
) -> Steps[ModelInfo]:
    """Register the model if it is absent, download and convert it, wait until it is ready.

    Args:
        version: branch, tag or commit; None takes the current version, `main` for a new model. A
            further version is installed beside the others; the current one stays (see `use`).
        task_type: None takes txt2embed for a new model.
        source_url: `file:///…` as the server sees it; None takes the hub.
        on_progress: called about four times a second.
        timeout: seconds to wait; None waits for ever.

    Raises:
        InstallFailed: with the server's reason.
        WaitTimeout: the installation goes on at the server.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    yield from _registered(model_id, version, task_type, source_url)
    yield from download(model_id, version)
    return (yield from wait_installed(model_id, version, on_progress, deadline, timeout))


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
    model_id: str, version: str | None, task_type: str | None, source_url: str | None
) -> Steps[None]:
    """Register the model if it is absent; refuse to take it from elsewhere than before."""
    try:
        model = yield from get(model_id)
    except ModelMoraApiError as error:
        if error.code != "MODEL_NOT_FOUND":
            raise
        yield from register(
            model_id, task_type or "txt2embed", version=version, source_url=source_url
        )
        return
    for name, asked in {"task_type": task_type, "source_url": source_url}.items():
        if asked is not None and asked != getattr(model, name):
            raise ModelMoraApiError(
                "MODEL_ALREADY_EXISTS",
                f"{model_id} is registered with {name} {getattr(model, name) or '(the hub)'}, "
                f"not {asked}. To change that: modelmora uninstall {model_id}",
                status=409,
            )
