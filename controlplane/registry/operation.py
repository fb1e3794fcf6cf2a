"""An operation: work in the background that was asked for, and its record. Rules only, no I/O.

    pending ──▶ running ──▶ succeeded | failed | cancelled

It is pending while it waits for its turn (again after a restart of the server), and never leaves
the state it ended in.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from controlplane.registry.files import Progress

INSTALL = "install"
# How often a server may end in the middle of the same operation before nobody tries again: one
# that takes the server down with it must not do so for ever.
MAX_ATTEMPTS = 3
_RATE_WINDOW_SECONDS = 5.0


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
    """One operation as it stands.

    Attributes:
        version_id: id of the version's row, which may be gone.
        attempts: 1, and one more for each restart of the server that interrupted it.
        fraction: 0 to 1 within the phase, None when unknown.
        rate: bytes per second just now; None when nothing is being transferred.
    """

    id: str
    kind: str
    model_id: str
    version: str
    version_id: str
    created_at: datetime
    updated_at: datetime
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


def advanced(
    operation: Operation, progress: Progress, rate: float | None, now: datetime
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
        rate=rate,
    )


def ended(
    operation: Operation, status: OperationStatus, error: OperationError | None, now: datetime
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


class RateMeter:
    """Bytes per second over the last five seconds of one phase."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._phase: str | None = None

    def add(self, moment: float, progress: Progress) -> float | None:
        """Take a sample at `moment` (monotonic seconds); the rate, None while unknown."""
        if progress.bytes_done is None:
            return None
        samples = self._samples
        went_back = bool(samples) and progress.bytes_done < samples[-1][1]
        if progress.phase != self._phase or went_back:
            samples.clear()
            self._phase = progress.phase
        samples.append((moment, progress.bytes_done))
        while moment - samples[0][0] > _RATE_WINDOW_SECONDS and len(samples) > 2:
            samples.popleft()
        (began, first), (ends, last) = samples[0], samples[-1]
        return (last - first) / (ends - began) if ends > began else None
