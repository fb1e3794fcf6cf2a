"""The client's operations on work in the background: begin, follow and cancel it; install."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from controlplane.client_operation_types import CatalogSync, Operation, OperationPage
from controlplane.client_operations import get, register
from controlplane.client_sse import SILENCE_SECONDS, Follower, Listen
from controlplane.client_steps import Pause, Steps, ask, given, model_path
from controlplane.client_types import (
    InstallFailed,
    ModelInfo,
    ModelMoraApiError,
    OnProgress,
    Progress,
    ServerUnreachable,
    WaitTimeout,
)

_POLL_SECONDS = 0.25
_OPERATIONS = "/api/v1/operations"
OnOperation = Callable[[Operation], None]


def download(
    model_id: str,
    version: str | None = None,
    *,
    trust_remote_code: bool = False,
    engine: str | None = None,
    precision: str | None = None,
) -> Steps[Operation]:
    """Start the installation of a registered model; returns at once, with its operation."""
    trusted = trust_remote_code or None
    body = given(version=version, trust_remote_code=trusted, engine=engine, precision=precision)
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
                f"The {found.kind} of {found.subject} is not done ({found.phase or found.status}) "
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


def install(
    model_id: str,
    version: str | None = None,
    task_type: str | None = None,
    source_url: str | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
    *,
    trust_remote_code: bool = False,
    engine: str | None = None,
    precision: str | None = None,
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
        engine, precision: what is to serve it; None chooses the fastest by measurement.

    Raises:
        InstallFailed: with the server's reason.
        WaitTimeout: the installation goes on at the server.
    """
    began = time.monotonic()
    trusted = {"trust_remote_code": True} if trust_remote_code else {}
    yield from _registered(model_id, version, task_type, source_url, trusted, on_progress)
    operation = yield from download(
        model_id,
        version,
        trust_remote_code=trust_remote_code,
        engine=engine,
        precision=precision,
    )
    left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
    return (yield from await_installation(operation, on_progress, left))


def await_installation(
    operation: Operation,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Steps[ModelInfo]:
    """Wait until an installation has ended; the model, told of the installed version.

    Raises:
        InstallFailed, WaitTimeout: as `install`.
    """

    def tell(state: Operation) -> None:
        if on_progress is not None and not state.finished:
            on_progress(state.progress)

    if not operation.finished:
        operation = yield from follow_operation(operation.id, tell, timeout)
    model = yield from get(operation.model_id or "", operation.version)
    if operation.status != "succeeded":
        raise InstallFailed(model, operation.error.message if operation.error else None)
    if on_progress is not None:
        on_progress(Progress(phase="ready"))
    return model


def _registered(
    model_id: str,
    version: str | None,
    task_type: str | None,
    source_url: str | None,
    trusted: dict[str, bool],
    on_progress: OnProgress | None,
) -> Steps[None]:
    """Register the model if it is absent; refuse to take it from elsewhere than before."""
    try:
        model = yield from get(model_id)
    except ModelMoraApiError as error:
        if error.code != "MODEL_NOT_FOUND":
            raise
        yield from register(
            model_id,
            task_type,
            version=version,
            source_url=source_url,
            on_progress=on_progress,
            **trusted,
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
