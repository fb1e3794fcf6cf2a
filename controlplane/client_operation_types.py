"""What the client's operations on background work return: the REST bodies as frozen structs."""

from __future__ import annotations

from datetime import datetime

import msgspec

from controlplane.client_types import Pagination, Progress


class OperationError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class SyncStep(msgspec.Struct, frozen=True, kw_only=True):
    """An action of a sync and its `state`: waiting, running, done, failed or left (not tried).

    `operation_id` is the installation that does it, `progress` how far that is.
    """

    action: str
    model_id: str
    version: str
    reason: str
    state: str
    error: str | None = None
    operation_id: str | None = None
    progress: Progress | None = None


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as locked; `part` is source, artefact or model."""

    model_id: str
    version: str
    part: str
    problem: str
    path: str | None = None
    expected: str | None = None
    found: str | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Work in the background: pending, running, succeeded, failed or cancelled.

    An `install` has `model_id` and `version`; a `sync` and a `verify` have the `lock`'s name,
    `steps` and `drift`.
    """

    id: str
    status: str
    kind: str = "install"
    message: str = ""
    attempts: int = 1
    model_id: str | None = None
    version: str | None = None
    lock: str | None = None
    lock_version: int | None = None
    steps: list[SyncStep] = []
    drift: list[Drift] = []
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
    def subject(self) -> str:
        """What it is about, for people: `org/name@version`, or the lock's name."""
        return f"lock {self.lock}" if self.model_id is None else f"{self.model_id}@{self.version}"

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
