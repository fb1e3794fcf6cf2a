"""The JSON bodies of operations."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.model_schemas import ProgressBody
from controlplane.gateway.rest.schemas import Id, Pagination, Version, present

if TYPE_CHECKING:
    from controlplane.registry.lock_work import Drift, Step
    from controlplane.registry.operation import Operation

PATH = "/api/v1/operations"


class OperationLinks(msgspec.Struct, kw_only=True):
    """Addresses on this server; a DELETE on `self` cancels."""

    self: str
    events: str
    model: str | UnsetType = UNSET
    lock: str | UnsetType = UNSET

    @classmethod
    def of(cls, operation: Operation) -> OperationLinks:
        own, work = f"{PATH}/{operation.id}", operation.work
        links = cls(self=own, events=f"{own}/events")
        if operation.model_id is not None:
            links.model = f"/api/v1/models/{operation.model_id}"
        if work is not None and work.lock_id is not None:
            links.lock = f"/api/v1/locks/{work.lock}"
        return links


class OperationErrorBody(msgspec.Struct, kw_only=True):
    """Why it did not succeed."""

    code: Annotated[str, Meta(examples=["DOWNLOAD_FAILED"])]
    message: str


class StepBody(msgspec.Struct, kw_only=True):
    """One action of a sync; `state` is left for what was not tried, and for a model that is not in
    the lock and stays. `operation_id` is the installation that does it."""

    action: Literal["install", "switch", "extra", "remove", "conflict", "repair"]
    model_id: Id
    version: Version
    reason: str
    state: Literal["waiting", "running", "done", "failed", "left"]
    error: str | UnsetType = UNSET
    operation_id: str | UnsetType = UNSET
    progress: ProgressBody | UnsetType = UNSET

    @classmethod
    def of(cls, step: Step) -> StepBody:
        action, progress = step.action, step.progress
        return cls(
            action=action.kind,
            model_id=action.model_id,
            version=action.version,
            reason=action.reason,
            state=step.state,
            error=present(step.error),
            operation_id=present(step.operation_id),
            progress=UNSET if progress is None else ProgressBody.of(progress),
        )


class DriftBody(msgspec.Struct, kw_only=True):
    """Something that is not as locked; `part` is model when the version is not installed."""

    model_id: Id
    version: Version
    part: Literal["model", "source", "artefact"]
    problem: Literal["missing", "changed", "unexpected", "not installed"]
    path: str | UnsetType = UNSET
    expected: str | UnsetType = UNSET
    found: str | UnsetType = UNSET

    @classmethod
    def of(cls, drift: Drift) -> DriftBody:
        return cls(
            model_id=drift.model_id,
            version=drift.version,
            part=drift.part,
            problem=drift.problem,
            path=present(drift.path),
            expected=present(drift.expected),
            found=present(drift.found),
        )


class OperationResponse(msgspec.Struct, kw_only=True):
    """Work in the background: the installation of a version, or a lock's sync or verification.

    Attributes:
        model_id, version: of an installation.
        lock, lock_version: name and version of the lock; no version for a file that is not kept.
        steps: of a sync.
        drift: what verification found last.
        fraction: 0 to 1 within the phase.
        rate: bytes per second just now.
        attempts: above 1 when restarts of the server interrupted it.
    """

    id: str
    kind: Literal["install", "sync", "verify", "tune"]
    status: Literal["pending", "running", "succeeded", "failed", "cancelled"]
    message: str
    attempts: int
    created_at: datetime
    updated_at: datetime
    links: OperationLinks
    model_id: Id | UnsetType = UNSET
    version: Version | UnsetType = UNSET
    lock: str | UnsetType = UNSET
    lock_version: int | UnsetType = UNSET
    steps: list[StepBody] | UnsetType = UNSET
    drift: list[DriftBody] | UnsetType = UNSET
    phase: str | UnsetType = UNSET
    step: str | UnsetType = UNSET
    fraction: float | UnsetType = UNSET
    bytes_done: int | UnsetType = UNSET
    bytes_total: int | UnsetType = UNSET
    rate: float | UnsetType = UNSET
    error: OperationErrorBody | UnsetType = UNSET
    started_at: datetime | UnsetType = UNSET
    finished_at: datetime | UnsetType = UNSET

    @classmethod
    def of(cls, operation: Operation) -> OperationResponse:
        error, work = operation.error, operation.work
        response = cls(
            id=operation.id,
            kind=operation.kind,  # type: ignore[arg-type]
            model_id=present(operation.model_id),
            version=present(operation.version),
            status=operation.status.value,
            message=operation.message,
            attempts=operation.attempts,
            created_at=operation.created_at,
            updated_at=operation.updated_at,
            links=OperationLinks.of(operation),
            phase=present(operation.phase),
            step=present(operation.step),
            fraction=present(operation.fraction),
            bytes_done=present(operation.bytes_done),
            bytes_total=present(operation.bytes_total),
            rate=UNSET if operation.rate is None else round(operation.rate, 1),
            error=UNSET
            if error is None
            else OperationErrorBody(code=error.code, message=error.message),
            started_at=present(operation.started_at),
            finished_at=present(operation.finished_at),
        )
        if work is not None:
            response.lock = work.lock
            response.lock_version = present(work.lock_version)
            response.steps = [StepBody.of(step) for step in work.steps]
            response.drift = [DriftBody.of(drift) for drift in work.drift]
        return response


class OperationPageResponse(msgspec.Struct, kw_only=True):
    data: list[OperationResponse]
    pagination: Pagination
