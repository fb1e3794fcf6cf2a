"""The JSON bodies of operations."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import Id, Pagination, Version, present

if TYPE_CHECKING:
    from controlplane.registry.operation import Operation

PATH = "/api/v1/operations"


class OperationLinks(msgspec.Struct, kw_only=True):
    """Addresses on this server; a DELETE on `self` cancels."""

    self: str
    events: str
    model: str


class OperationErrorBody(msgspec.Struct, kw_only=True):
    """Why it did not succeed."""

    code: Annotated[str, Meta(examples=["DOWNLOAD_FAILED"])]
    message: str


class OperationResponse(msgspec.Struct, kw_only=True):
    """Work in the background.

    Attributes:
        fraction: 0 to 1 within the phase.
        rate: bytes per second just now.
        attempts: above 1 when restarts of the server interrupted it.
    """

    id: str
    kind: Literal["install"]
    model_id: Id
    version: Version
    status: Literal["pending", "running", "succeeded", "failed", "cancelled"]
    message: str
    attempts: int
    created_at: datetime
    updated_at: datetime
    links: OperationLinks
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
        error = operation.error
        own = f"{PATH}/{operation.id}"
        return cls(
            id=operation.id,
            kind="install",
            model_id=operation.model_id,
            version=operation.version,
            status=operation.status.value,
            message=operation.message,
            attempts=operation.attempts,
            created_at=operation.created_at,
            updated_at=operation.updated_at,
            links=OperationLinks(
                self=own, events=f"{own}/events", model=f"/api/v1/models/{operation.model_id}"
            ),
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


class OperationPageResponse(msgspec.Struct, kw_only=True):
    data: list[OperationResponse]
    pagination: Pagination
