"""Syncs and verifications as operations: begun, one at a time, cancelled, resumed.

The operation records which version of which lock it is about, so the next server goes on with the
same one: a sync plans anew and does what is left, a verification begins again. A verification of a
file that is not kept fails with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import (
    LockDiffers,
    LockNotFound,
    ModelMoraError,
    OperationFinished,
    OperationNotFound,
    ValidationFailed,
)
from controlplane.registry.lock_work import LockWork
from controlplane.registry.locking import require_models
from controlplane.registry.operation import (
    CANCELLED,
    INTERRUPTED,
    SYNC,
    VERIFY,
    Operation,
    OperationError,
    OperationStatus,
)
from controlplane.registry.sync import LockRun, Machine, refusals

if TYPE_CHECKING:
    from controlplane.registry.lock import LockDocument, ModelLock

log = structlog.get_logger(__name__)

_ASKED = "It was cancelled; what was done stays done."


@dataclass(eq=False)
class _Job:
    """A run, its operation and the task that does it."""

    operation: Operation
    run: LockRun
    stop: threading.Event
    task: asyncio.Task[None] = field(init=False)
    asked_to_stop: bool = False


class LockOperations:
    """Runs syncs and verifications; all calls on one event loop."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._operations = machine.installer.operations
        self._jobs: dict[str, _Job] = {}
        self._turn = asyncio.Lock()
        for kind in (SYNC, VERIFY):
            self._operations.cancellers[kind] = self._cancel

    def sync(self, lock: ModelLock, *, frozen: bool = False, prune: bool = False) -> Operation:
        """Begin to make this machine equal the lock: install, switch, remove, verify, repair.

        Asked for once more while it is under way, it is that one.

        Args:
            frozen: do not, if anything would have to be changed; only verify.
            prune: remove models that are not in the lock.

        Raises:
            InvalidLock: it has no models.
            LockDiffers: some of it cannot be done, or `frozen` forbids it; nothing was changed.
        """
        require_models(lock.document)
        work = LockWork(
            lock=lock.name, lock_id=lock.id, lock_version=lock.version, frozen=frozen, prune=prune
        )
        actions = self._machine.locking.plan(lock.document, prune=prune)
        if refused := refusals(work, actions):
            raise LockDiffers(lock.name, refused)
        return self._begin(SYNC, work.planned(actions), lock.document)

    def verify(self, lock: ModelLock) -> Operation:
        """Begin to hash everything that a lock names; one that is under way serves both.

        Raises:
            InvalidLock: it has no models.
        """
        require_models(lock.document)
        work = LockWork(lock=lock.name, lock_id=lock.id, lock_version=lock.version)
        return self._begin(VERIFY, work, lock.document)

    def verify_file(self, document: LockDocument) -> Operation:
        """As `verify`, of a lock that is not kept.

        Raises:
            InvalidLock: it has no models.
        """
        require_models(document)
        return self._begin(VERIFY, LockWork(lock=document.name), document)

    def resume(self) -> None:
        """At start, when installations are resumed: go on with what the last server left."""
        for operation in self._operations.waiting(SYNC, VERIFY):
            if not self._operations.give_up(operation):
                self._resume(operation)

    def _resume(self, operation: Operation) -> None:
        document = self._document_of(operation)
        if document is None:
            message = f"The server stopped in the middle of it; {operation.kind} again."
            self._fail(operation, INTERRUPTED, message)
            return
        log.info("resuming lock operation", kind=operation.kind, operation_id=operation.id)
        try:
            self._start(self._operations.begin_again(operation), document)
        except ModelMoraError as error:  # a full disk, for one: it must not keep us from serving
            log.warning("not resumed", operation_id=operation.id, error=error.message)
            message = f"It was interrupted and could not be resumed: {error.message}"
            self._fail(operation, error.code, message)

    async def close(self) -> None:
        """Stop what runs; `resume` goes on with it."""
        while self._jobs:
            for job in self._jobs.values():
                job.run.hurry = True
            await self._stop(list(self._jobs.values()))

    # -- running -----------------------------------------------------------------------------

    def _begin(self, kind: str, work: LockWork, document: LockDocument) -> Operation:
        for operation in self._operations.under_way(kind):
            if operation.work is not None and work.asks_the_same(operation.work):
                return operation
        operation = self._operations.begin_work(kind, work)
        self._start(operation, document)
        return operation

    def _start(self, operation: Operation, document: LockDocument) -> None:
        assert operation.work is not None, operation
        stop = threading.Event()
        run = LockRun(
            self._machine,
            document,
            operation.work,
            tell=partial(self._operations.report, operation.id),
            tell_bytes=self._operations.reporter(operation.id),
            cancelled=stop,
        )
        job = _Job(operation, run, stop)
        job.task = asyncio.get_running_loop().create_task(self._run(job))
        self._jobs[operation.id] = job

    async def _run(self, job: _Job) -> None:
        kind, lock = job.operation.kind, job.run.work.lock
        try:
            async with self._turn:
                await (job.run.sync() if kind == SYNC else job.run.verify())
        except asyncio.CancelledError:
            self._end_stopped(job)
        except ModelMoraError as error:
            log.warning("lock operation failed", kind=kind, lock=lock, error=error.message)
            self._end(job, error.code, error.message)
        except Exception as error:
            log.exception("lock operation failed", kind=kind, lock=lock)
            self._end(job, ModelMoraError.code, f"The {kind} failed unexpectedly: {error}")
        else:
            log.info("lock operation ended", kind=kind, lock=lock)
            self._end(job)

    def _end(self, job: _Job, code: str = "", message: str = "") -> None:
        """The task is over, and its operation says so. No `code` means well."""
        operation = self._jobs.pop(job.operation.id).operation
        work = job.run.work.stopped()
        if code:
            self._fail(operation, code, message, work)
        else:
            self._operations.finish(operation.id, OperationStatus.SUCCEEDED, work=work)

    def _end_stopped(self, job: _Job) -> None:
        if job.asked_to_stop:
            self._end(job, CANCELLED, _ASKED)
        else:
            del self._jobs[job.operation.id]
            self._operations.suspend(job.operation.id, "interrupted; goes on with the next server")

    def _fail(
        self, operation: Operation, code: str, message: str, work: LockWork | None = None
    ) -> None:
        cancelled = code == CANCELLED
        status = OperationStatus.CANCELLED if cancelled else OperationStatus.FAILED
        self._operations.finish(operation.id, status, OperationError(code, message), work)

    async def _cancel(self, operation_id: str) -> None:
        """Somebody asked for it: the installations that it began end with it."""
        job = self._jobs[operation_id]
        job.asked_to_stop = True
        await self._stop([job])
        for begun in job.run.begun:
            with contextlib.suppress(OperationFinished, OperationNotFound):
                await self._operations.cancel(begun)

    async def _stop(self, jobs: list[_Job]) -> None:
        for job in jobs:
            job.stop.set()
            job.task.cancel()
        await asyncio.wait([job.task for job in jobs])
        for job in jobs:
            # A task that is cancelled before its first step never gets to its own end.
            if job.operation.id in self._jobs:
                self._end_stopped(job)

    def _document_of(self, operation: Operation) -> LockDocument | None:
        """What an interrupted operation was about, if that can still be told."""
        work = operation.work
        if work is None or work.lock_version is None:
            return None
        locks = self._machine.locking.locks
        try:
            if locks.get(work.lock).id != work.lock_id:  # another one under its name
                return None
            return locks.revision(work.lock, work.lock_version).document
        except (LockNotFound, ValidationFailed):
            return None
