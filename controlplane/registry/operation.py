"""An operation: work in the background that was asked for, and its record. Rules only, no I/O.

    pending ──▶ running ──▶ succeeded | failed | cancelled

It is pending while it waits for its turn (again after a restart of the server), and never leaves
the state it ended in.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum

import msgspec

from controlplane.registry.files import Progress
from controlplane.registry.lock_work import LockWork

INSTALL, SYNC, VERIFY, TUNE = "install", "sync", "verify", "tune"
KINDS = (INSTALL, SYNC, VERIFY, TUNE)
# How often a server may end in the middle of the same operation before nobody tries again: one
# that takes the server down with it must not do so for ever.
MAX_ATTEMPTS = 3
INTERRUPTED = "INTERRUPTED"
CANCELLED = "CANCELLED"


class OperationStatus(str, Enum):
    """Where an operation stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


ACTIVE = (OperationStatus.PENDING, OperationStatus.RUNNING)


class OperationError(msgspec.Struct, frozen=True):
    """Why an operation did not succeed: a code of the error envelope and its message."""

    code: str
    message: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation as it stands: the installation or tuning of a version, or work on a
    lock.

    Attributes:
        version_id: id of the version's row, which may be gone.
        work: what it does to which lock, and its steps; None for an installation.
        attempts: 1, and one more for each restart of the server that interrupted it.
        fraction: 0 to 1 within the phase, None when unknown.
        rate: bytes per second just now; None when nothing is being transferred.
    """

    id: str
    kind: str
    created_at: datetime
    updated_at: datetime
    model_id: str | None = None
    version: str | None = None
    version_id: str | None = None
    work: LockWork | None = None
    status: OperationStatus = OperationStatus.PENDING
    attempts: int = 1
    phase: str | None = None
    step: str | None = None
    message: str = ""
    fraction: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    rate: float | None = None
    error: OperationError | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


def progress_of(operation: Operation) -> Progress | None:
    """How far an operation is; None before its first progress."""
    if operation.phase is None:
        return None
    names = Progress.__struct_fields__
    return msgspec.convert({name: getattr(operation, name) for name in names}, Progress)


def advanced(
    operation: Operation, progress: Progress, now: datetime, work: LockWork | None = None
) -> Operation:
    """The operation with this progress; the first makes it `running`."""
    return msgspec.structs.replace(
        operation,
        status=OperationStatus.RUNNING,
        started_at=operation.started_at or now,
        updated_at=now,
        phase=progress.phase,
        step=progress.step,
        message=progress.message,
        fraction=progress.fraction,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        rate=progress.rate,
        work=work or operation.work,
    )


def ended(
    operation: Operation,
    status: OperationStatus,
    error: OperationError | None,
    now: datetime,
    work: LockWork | None = None,
) -> Operation:
    """The operation at its end; phase and step stay and tell how far it came."""
    succeeded = status is OperationStatus.SUCCEEDED
    return msgspec.structs.replace(
        operation,
        status=status,
        error=error,
        updated_at=now,
        finished_at=now,
        fraction=1.0 if succeeded else operation.fraction,
        message="" if succeeded else operation.message,
        rate=None,
        work=work or operation.work,
    )


def interrupted(operation: Operation, message: str, now: datetime) -> Operation:
    """The operation waiting for its next attempt."""
    return msgspec.structs.replace(
        operation,
        status=OperationStatus.PENDING,
        message=message,
        updated_at=now,
        fraction=None,
        rate=None,
    )
