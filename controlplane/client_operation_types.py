"""What the client's operations on background work return: the REST bodies as frozen structs."""

from __future__ import annotations

from datetime import datetime

import msgspec

from controlplane.client_types import Pagination, Progress


class OperationError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Work in the background: pending, running, succeeded, failed or cancelled."""

    id: str
    model_id: str
    version: str
    status: str
    kind: str = "install"
    message: str = ""
    attempts: int = 1
    phase: str | None = None
    step: str | None = None
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    rate: float | None = None
    error: OperationError | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: dict[str, str] | None = None

    @property
    def finished(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def progress(self) -> Progress:
        """How far it is; an operation that has not begun is `pending`."""
        return Progress(
            phase=self.phase or self.status,
            step=self.step or "",
            message=self.message,
            fraction=self.fraction,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            rate=self.rate,
        )


class OperationPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Operation]
    pagination: Pagination


class CatalogResult(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, or was, for one entry of a catalog file.

    `actions` are register, add_version, update, install and use; none when nothing is to be done.
    `status` is planned, unchanged, installing, done or failed.
    """

    model_id: str
    version: str
    actions: list[str]
    status: str
    message: str = ""
    operation: Operation | None = None
    error: OperationError | None = None


class CatalogSync(msgspec.Struct, frozen=True, kw_only=True):
    """`in_sync` is true when nothing was to be done for any entry."""

    dry_run: bool
    in_sync: bool
    results: list[CatalogResult]
