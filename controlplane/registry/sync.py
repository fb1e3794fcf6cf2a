"""Making this machine equal a lock, and finding out whether it is: one run of each.

What a run has done stays done, whatever ends it; another one does the rest.
`lock_operations.py` begins, ends and resumes runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import LockDiffers, LockDrift, ModelMoraError, ModelNotFound, SyncFailed
from controlplane.registry.disk import remove_tree
from controlplane.registry.engine_choice import locked_choice
from controlplane.registry.files import Progress
from controlplane.registry.lock_plan import Action
from controlplane.registry.model import NewModel, VersionStatus
from controlplane.registry.operation import progress_of
from controlplane.registry.verification import targets, verify
from controlplane.registry.waiting import to_its_end

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from controlplane.registry.engine_choice import EngineChoice
    from controlplane.registry.files import Phase
    from controlplane.registry.install import Installer
    from controlplane.registry.lock import LockDocument, LockedModelEntry
    from controlplane.registry.lock_work import LockWork
    from controlplane.registry.locking import Locking
    from controlplane.registry.model import ModelVersion
    from controlplane.registry.store import ModelStore

_TELL_SECONDS = 0.2  # several installations report ten times a second each


@dataclass(frozen=True)
class Machine:
    """What is compared with a lock, and changed.

    Attributes:
        repository: Triton's model repository.
        remove: takes a model away, out of memory too.
        switch: makes a version current.
    """

    locking: Locking
    store: ModelStore
    installer: Installer
    downloads: Path
    repository: Path
    remove: Callable[[str], Awaitable[None]]
    switch: Callable[[str, str], Awaitable[None]]


def refusals(work: LockWork, actions: tuple[Action, ...]) -> list[str]:
    """The actions that cannot be taken or, when it is frozen, must not.

    Frozen means equal: models beyond the lock are a difference then.
    """
    return [str(action) for action in actions if work.frozen or action.kind == "conflict"]


class LockRun:
    """One sync or verification, in its turn.

    Args:
        tell: told of progress and of the work as it stands, on the event loop.
        tell_bytes: told of progress alone, from any thread.
        cancelled: set when a running verification is to stop.

    Attributes:
        work: as it stands.
        begun: the installations that this run, and nobody before it, has asked for.
        hurry: the server stops: when cancelled, do not even end a switch or a removal.
    """

    def __init__(
        self,
        machine: Machine,
        document: LockDocument,
        work: LockWork,
        *,
        tell: Callable[[Progress, LockWork], None],
        tell_bytes: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> None:
        self.work = work
        self.begun: list[str] = []
        self.hurry = False
        self._machine = machine
        self._document = document
        self._tell = tell
        self._tell_bytes = tell_bytes
        self._cancelled = cancelled
        self._phase: Phase = "installing"
        self._told_at = float("-inf")

    async def sync(self) -> None:
        """Make the machine equal the lock: install, switch, remove, verify, repair.

        Raises:
            LockDiffers: some of it cannot be done, or `frozen` forbids it; nothing was changed.
            SyncFailed: steps failed, or somebody else changed the catalog meanwhile.
            LockDrift: files are not as locked.
        """
        # Planned now and not when it was asked for: another sync may have had its turn since.
        self._changed(self.work.planned(self._plan()))
        if refused := refusals(self.work, tuple(step.action for step in self.work.steps)):
            raise LockDiffers(self._document.name, refused)
        await self._act()
        await self._hash()
        if self.work.drift and not self.work.frozen:
            await self._repair()
            await self._hash()
        self._refuse_drift()
        if left := [action for action in self._plan() if action.kind != "extra"]:
            raise SyncFailed(f"Changed meanwhile: {'; '.join(map(str, left))}. Sync again.")

    async def verify(self) -> None:
        """Hash everything that the lock names.

        Raises:
            LockDrift: something is not as locked.
        """
        await self._hash()
        self._refuse_drift()

    # -- acting ------------------------------------------------------------------------------

    def _plan(self) -> tuple[Action, ...]:
        return self._machine.locking.plan(self._document, prune=self.work.prune)

    async def _act(self) -> None:
        installs = self.work.indices("install")
        for index in installs:  # all at once: the installer knows how many it can do
            self._attempt(index, partial(self._request, index))
        await asyncio.gather(*(self._installed(index) for index in installs))
        self._phase = "switching"
        for index in self.work.indices("switch"):
            await self._switch(index)
        self._phase = "removing"
        for index in self.work.indices("remove"):
            if not self.work.failed:  # what is there is better than nothing
                await self._do(index, self._remove(self._action(index).model_id))
        for index, step in enumerate(self.work.steps):
            if step.state == "waiting":
                self._set(index, state="left")
        self._refuse_failures()

    def _request(self, index: int) -> None:
        action = self._action(index)
        entry = self._document.entry(action.model_id)
        assert entry is not None, action  # actions to install are made of entries
        if entry.trust_remote_code:  # before the catalog knows of it
            self._machine.installer.check_code(entry.model_id, entry.trust_remote_code)
        bring(self._machine.store, entry, action.version)
        self._install(index)

    def _install(self, index: int) -> None:
        action, installer = self._action(index), self._machine.installer
        joined = installer.progress(action.model_id, action.version) is not None
        operation = installer.install(action.model_id, action.version)
        self._set(index, operation_id=operation.id)
        if not joined and operation.active:
            self.begun.append(operation.id)

    async def _installed(self, index: int) -> None:
        """Wait for an installation, if it was begun, and have its version served."""
        step = self.work.steps[index]
        if step.state != "running" or step.operation_id is None:
            return
        operations = self._machine.installer.operations
        watching = operations.watch(step.operation_id, heartbeat=None, insistent=True)
        async with contextlib.aclosing(watching) as states:
            async for state in states:
                if state is not None and state.active:
                    self._advance(index, progress_of(state))
        self._set(index, quiet=True, progress=None)
        await self._do(index, self._taken_over(self._action(index)))

    def _advance(self, index: int, progress: Progress | None) -> None:
        known = self.work.steps[index].progress
        same_phase = bool(known and progress and known.phase == progress.phase)
        self._set(index, quiet=same_phase, progress=progress)

    async def _taken_over(self, action: Action) -> None:
        model = self._machine.store.get(action.model_id)
        version = self._machine.store.version(action.model_id, action.version)
        if version.status is not VersionStatus.READY:
            raise SyncFailed(version.error_message or f"It is {version.status}.")
        if model.current_version != action.version:
            await self._machine.switch(action.model_id, action.version)

    async def _switch(self, index: int) -> None:
        action = self._action(index)
        await self._do(index, self._machine.switch(action.model_id, action.version))

    async def _remove(self, model_id: str) -> None:
        # The removal itself is forced, for models that are in memory; another lock still counts.
        self._machine.store.check_unlocked(model_id)
        await self._machine.remove(model_id)

    # -- hashing and repairing ---------------------------------------------------------------

    async def _hash(self) -> None:
        self._phase = "verifying"
        wanted, absent = targets(
            self._document.locked_models,
            {model.model_id: model for model in self._machine.locking.every_model()},
            self._machine.store.source_files,
            downloads=self._machine.downloads,
            repository=self._machine.repository,
        )
        self._changed(msgspec.structs.replace(self.work, drift=()))
        call = partial(verify, wanted, progress=self._tell_bytes, cancelled=self._cancelled)
        hashing = asyncio.ensure_future(asyncio.to_thread(call))
        found = await to_its_end(hashing, self._cancelled.set)
        self.work = msgspec.structs.replace(self.work, drift=(*absent, *found))

    def _refuse_drift(self) -> None:
        if self.work.drift:
            raise LockDrift(self._document.name, len(self.work.drift))

    async def _repair(self) -> None:
        """Install again what is damaged; sources that are intact are not downloaded again."""
        self._phase = "repairing"
        damaged = sorted({(d.model_id, d.version) for d in self.work.drift if d.part != "model"})
        bad_sources = {(d.model_id, d.version) for d in self.work.drift if d.part == "source"}
        for model_id, name in damaged:
            reason = "some of its files are not as locked"
            action = Action(kind="repair", model_id=model_id, version=name, reason=reason)
            index = len(self.work.steps)
            self._changed(self.work.with_step(index, action=action, state="running"))
            version = self._machine.store.version(model_id, name)
            if (model_id, name) in bad_sources:
                place = self._machine.downloads / version.triton_name / str(version.triton_version)
                await asyncio.to_thread(remove_tree, place)
            self._attempt(index, partial(self._reinstall, index, version))
            await self._installed(index)
        self._refuse_failures()

    def _reinstall(self, index: int, version: ModelVersion) -> None:
        self._machine.store.set_status(
            version.model_id,
            version.version,
            VersionStatus.FAILED,
            "Some of its files are not as locked; it is being installed again.",
        )
        self._install(index)

    # -- steps -------------------------------------------------------------------------------

    def _action(self, index: int) -> Action:
        return self.work.steps[index].action

    def _attempt(self, index: int, call: Callable[[], None]) -> None:
        self._set(index, state="running")
        try:
            call()
        except ModelMoraError as error:
            self._set(index, state="failed", error=error.message)

    async def _do(self, index: int, work: Awaitable[None]) -> None:
        self._set(index, state="running")
        doing = asyncio.ensure_future(work)
        try:
            # whole: cancelled half way it would leave a model between two versions
            await to_its_end(doing, lambda: self.hurry and doing.cancel())
            self._set(index, state="done")
        except ModelMoraError as error:
            self._set(index, state="failed", error=error.message)

    def _set(self, index: int, *, quiet: bool = False, **changes: Any) -> None:
        self._changed(self.work.with_step(index, **changes), quiet=quiet)

    def _changed(self, work: LockWork, *, quiet: bool = False) -> None:
        """The work came so far; `quiet` changes are told of a few times a second only."""
        self.work = work
        now = time.monotonic()
        if quiet and now - self._told_at < _TELL_SECONDS:
            return
        self._told_at = now
        ended, count = work.ended, len(work.steps)
        progress = Progress(
            phase=self._phase,
            step=work.running,
            message=f"{ended} of {count} steps" if count else "",
            fraction=ended / count if count and self._phase != "verifying" else None,
        )
        self._tell(progress, work)

    def _refuse_failures(self) -> None:
        failed = self.work.failed
        if failed:
            names = ", ".join(step.action.model_id for step in failed)
            raise SyncFailed(f"{len(failed)} of {len(self.work.steps)} steps failed: {names}.")


def bring(store: ModelStore, entry: LockedModelEntry, name: str) -> None:
    """Have the catalog know the locked version under `name`, pinned before it is downloaded.

    Raises:
        ValidationFailed, VersionAlreadyExists, ChecksumMismatch: the catalog will not have it.
    """
    pins: dict[str, Any] = {
        "revision": entry.revision,
        "checksum": entry.checksum,
        "artifact_uri": entry.artifact_uri,
    }
    try:
        known = {version.version for version in store.get(entry.model_id).versions}
    except ModelNotFound:
        store.register(
            NewModel(
                model_id=entry.model_id,
                task_type=entry.task_type,
                version=name,
                source_url=entry.source_url,
                resource_requirements=entry.resource_requirements,
                trust_remote_code=entry.trust_remote_code,
                engine_choice=_engine(entry),
                **pins,
            )
        )
        return
    if name in known:
        if entry.trust_remote_code:
            store.trust_code(entry.model_id, name)
        store.pin(entry.model_id, name, **pins)
    else:
        store.add_version(
            entry.model_id,
            name,
            resource_requirements=entry.resource_requirements,
            trust_remote_code=entry.trust_remote_code,
            engine_choice=_engine(entry),
            **pins,
        )


def _engine(entry: LockedModelEntry) -> EngineChoice | None:
    """The engine that the lock's machine serves it with, if this one has it."""
    made = entry.converter
    return None if made is None else locked_choice(made.engine, made.precision)
