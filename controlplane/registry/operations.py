"""The ledger of operations: those under way, in memory and for watchers, and the record of all.

It does no work itself: `install.py` and `lock_operations.py` tell it what begins, how far that is
and how it ends. While an operation is under way its state lives here; the database gets its
beginning, its end, each change of phase, and otherwise a line every few seconds, because each write
waits for the disk.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from controlplane.errors import ModelMoraError, OperationFinished
from controlplane.events import utc_now
from controlplane.registry.operation import (
    CANCELLED,
    INSTALL,
    INTERRUPTED,
    MAX_ATTEMPTS,
    Operation,
    OperationError,
    OperationStatus,
    advanced,
    ended,
    interrupted,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from controlplane.paging import Page
    from controlplane.registry.files import Progress
    from controlplane.registry.lock_work import LockWork
    from controlplane.registry.model import ModelVersion
    from controlplane.registry.operation_store import OperationStore

log = structlog.get_logger(__name__)

SAVE_SECONDS = 5.0
HEARTBEAT_SECONDS = 15.0
_REPORT_SECONDS = 0.1  # a download reports every chunk: thousands a second


class _Live:
    """An operation under way, and who watches it."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.saved_at = float("-inf")
        self.watchers: set[asyncio.Event] = set()

    def wake(self) -> None:
        for watcher in self.watchers:
            watcher.set()


class Operations:
    """All operations. Everything but what `reporter` returns is called on the event loop.

    Attributes:
        cancellers: by kind of operation, who stops one that is under way; returns when it is.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self, store: OperationStore, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self.cancellers: dict[str, Callable[[str], Awaitable[None]]] = {}
        self._stopped = False

    # -- what those tell who do the work ---------------------------------------------------------

    def begin(self, version: ModelVersion, kind: str = INSTALL) -> Operation:
        """A version's installation (or tuning: TUNE) begins, or begins again where a restart
        interrupted it."""
        earlier = self._store.of_version(version.id, active=True)
        return self._begin(_new(version, kind)) if earlier is None else self.begin_again(earlier)

    def begin_work(self, kind: str, work: LockWork) -> Operation:
        """Work on a lock begins; `kind` is SYNC or VERIFY."""
        now, waits = utc_now(), "waiting for its turn"
        return self._begin(
            Operation(
                id=str(uuid.uuid4()),
                kind=kind,
                work=work,
                created_at=now,
                updated_at=now,
                message=waits,
            )
        )

    def _begin(self, operation: Operation) -> Operation:
        self._store.add(operation)
        self._live[operation.id] = _Live(operation)
        return operation

    def begin_again(self, earlier: Operation) -> Operation:
        """An operation begins again that the end of a server interrupted."""
        again = msgspec.structs.replace(earlier, attempts=earlier.attempts + 1)
        operation = interrupted(again, "waiting for its turn, again", utc_now())
        self._store.save(operation)
        self._live[operation.id] = _Live(operation)
        return operation

    def installed(self, version: ModelVersion) -> Operation:
        """The operation that made a ready version what it is; made up when nobody recorded it."""
        known = self._store.of_version(version.id, active=False)
        if known is not None and known.status is OperationStatus.SUCCEEDED:
            return known
        operation = ended(_new(version), OperationStatus.SUCCEEDED, None, utc_now())
        self._store.add(operation)
        return operation

    def reporter(self, operation_id: str) -> Callable[[Progress], None]:
        """The function to tell progress to, from any thread and as often as one likes."""
        loop = asyncio.get_running_loop()
        last_moment, last_step = float("-inf"), ""

        def report(progress: Progress) -> None:
            nonlocal last_moment, last_step
            moment, step = self._clock(), f"{progress.phase} {progress.step}"
            whole = progress.fraction == 1.0
            if step == last_step and moment - last_moment < _REPORT_SECONDS and not whole:
                return
            last_moment, last_step = moment, step
            loop.call_soon_threadsafe(self.report, operation_id, progress)

        return report

    def report(self, operation_id: str, progress: Progress, work: LockWork | None = None) -> None:
        """An operation came so far; one that ended meanwhile stays ended.

        Args:
            work: its steps and findings by now; None leaves them as they were.
        """
        live = self._live.get(operation_id)
        if live is None:
            return
        before, moment = live.operation, self._clock()
        live.operation = advanced(before, progress, utc_now(), work)
        live.wake()
        if before.phase != progress.phase or moment - live.saved_at >= SAVE_SECONDS:
            live.saved_at = moment
            self._save(live.operation)

    def finish(
        self,
        operation_id: str,
        status: OperationStatus,
        error: OperationError | None = None,
        work: LockWork | None = None,
    ) -> None:
        """An operation ended; one that had ended already stays as it is."""
        operation = self.get(operation_id)
        if operation.active:
            self._settle(ended(operation, status, error, utc_now(), work))

    def suspend(self, operation_id: str, message: str) -> None:
        """The server stops in the middle of it; the next one goes on with it."""
        self._settle(interrupted(self.get(operation_id), message, utc_now()))

    def waiting(self, *kinds: str) -> tuple[Operation, ...]:
        """At start: operations of these kinds that an earlier server left, the oldest first."""
        self._store.prune()
        left = (one for one in self._store.active() if one.id not in self._live)
        return tuple(one for one in left if one.kind in kinds)

    def give_up(self, operation: Operation) -> bool:
        """End an operation that too many servers ended in the middle of; True when it was one."""
        if operation.attempts < MAX_ATTEMPTS:
            return False
        message = (
            f"The server ended {operation.attempts} times in the middle of it. "
            f"Look at its log; {operation.kind} again."
        )
        self.finish(operation.id, OperationStatus.FAILED, OperationError(INTERRUPTED, message))
        return True

    async def cancel(self, operation_id: str) -> Operation:
        """Stop an operation; the operation when it has stopped.

        Raises:
            OperationNotFound.
            OperationFinished: it had ended, or was faster than this.
        """
        operation = self.get(operation_id)
        if operation_id in self._live:
            await self.cancellers[operation.kind](operation_id)
        elif operation.active:  # of an earlier server, and not resumed
            error = OperationError(CANCELLED, "It was cancelled before it was resumed.")
            self.finish(operation_id, OperationStatus.CANCELLED, error)
        else:
            raise OperationFinished(operation_id, operation.status.value)
        operation = self.get(operation_id)
        if operation.status is not OperationStatus.CANCELLED:
            raise OperationFinished(operation_id, operation.status.value)
        return operation

    def _settle(self, operation: Operation) -> None:
        live = self._live.pop(operation.id, None)
        if live is not None:
            live.operation = operation
            live.wake()
        self._save(operation)

    def _save(self, operation: Operation) -> None:
        try:
            self._store.save(operation)
        except ModelMoraError as error:
            # Work must not fail because of its record. A lost end is found at the next start.
            log.warning("operation not recorded", operation_id=operation.id, error=error.message)

    # -- questions -------------------------------------------------------------------------------

    def get(self, operation_id: str) -> Operation:
        """An operation as it stands now.

        Raises:
            OperationNotFound.
        """
        live = self._live.get(operation_id)
        return live.operation if live else self._store.get(operation_id)

    def page(self, **filters: Any) -> Page[Operation]:
        """A page of operations, see `OperationStore.page`; those under way as they stand now."""
        page = self._store.page(**filters)
        items = tuple(
            self._live[one.id].operation if one.id in self._live else one for one in page.items
        )
        return dataclasses.replace(page, items=items)

    @property
    def watchers(self) -> int:
        """How many are watching."""
        return sum(len(live.watchers) for live in self._live.values())

    def under_way(self, kind: str) -> tuple[Operation, ...]:
        """Operations of one kind that this server has begun and not ended, the oldest first."""
        found = (live.operation for live in self._live.values())
        return tuple(operation for operation in found if operation.kind == kind)

    async def watch(
        self,
        operation_id: str,
        *,
        heartbeat: float | None = HEARTBEAT_SECONDS,
        insistent: bool = False,
    ) -> AsyncGenerator[Operation | None, None]:
        """The operation as it stands, then each change of it, and its end as the last one.

        Who takes long to come back gets the newest state, not every one between. None after
        `heartbeat` seconds without a change. Ends early when the server stops.

        Args:
            insistent: go on while the server stops; for those that are ended themselves then.

        Raises:
            OperationNotFound.
        """
        live = self._live.get(operation_id)
        if live is None:
            yield self.get(operation_id)
            return
        changed = asyncio.Event()
        live.watchers.add(changed)
        try:
            while True:
                changed.clear()
                operation = live.operation
                yield operation
                while live.operation is operation:
                    if not operation.active or (self._stopped and not insistent):
                        return
                    try:
                        await asyncio.wait_for(changed.wait(), heartbeat)
                    except (asyncio.TimeoutError, TimeoutError):
                        yield None
        finally:
            live.watchers.discard(changed)

    def stop_watching(self) -> None:
        """Send all watchers away: the server stops, and they would hold it up."""
        self._stopped = True
        for live in self._live.values():
            live.wake()


def _new(version: ModelVersion, kind: str = INSTALL) -> Operation:
    now = utc_now()
    return Operation(
        id=str(uuid.uuid4()),
        kind=kind,
        model_id=version.model_id,
        version=version.version,
        version_id=version.id,
        created_at=now,
        updated_at=now,
        message="waiting for its turn",
    )
