"""Making this machine equal a lock, and finding out whether it is: both in the background.

An activity is begun, runs on by itself and can be asked how far it is. One runs at a time. Nothing
of it is kept over a restart: what a sync has done stays done, and running it again does the rest.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import structlog

from controlplane.errors import LockDiffers, ModelMoraError, ModelNotFound
from controlplane.events import utc_now
from controlplane.registry.disk import remove_tree
from controlplane.registry.lock_plan import Action
from controlplane.registry.locking import Locking, require_models
from controlplane.registry.model import NewModel, VersionStatus
from controlplane.registry.verification import Drift, Target, targets, verify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime
    from pathlib import Path

    from controlplane.registry.install import Installer
    from controlplane.registry.lock import LockDocument, LockedModelEntry
    from controlplane.registry.model import ModelVersion
    from controlplane.registry.store import ModelStore

log = structlog.get_logger(__name__)

_KEPT = 50


@dataclass(eq=False)
class Step:
    """An action of a sync and how it went."""

    action: Action
    state: Literal["waiting", "running", "done", "failed", "left"] = "waiting"
    error: str | None = None


@dataclass(eq=False)
class Activity:
    """A sync or a verification.

    Attributes:
        lock: name of the lock.
        steps: of a sync, as planned.
        drift: what verification has found; every sync ends with one.
        bytes_done, bytes_total: of the verification.
        error: why it failed.
    """

    kind: Literal["sync", "verify"]
    lock: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: Literal["running", "succeeded", "failed"] = "running"
    steps: list[Step] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    message: str = "waits for its turn"
    bytes_done: int = 0
    bytes_total: int = 0
    error: str | None = None
    started_at: datetime = field(default_factory=utc_now)
    finished_at: datetime | None = None

    def steps_to(self, kind: str) -> list[Step]:
        """The steps of one kind of action."""
        return [step for step in self.steps if step.action.kind == kind]

    def failed_steps(self) -> list[Step]:
        """The steps that have failed so far."""
        return [step for step in self.steps if step.state == "failed"]


class LockActivities:
    """Runs syncs and verifications; all calls on one event loop.

    Args:
        repository: Triton's model repository.
        remove: takes a model away, out of memory too.
        switch: makes a version current.
    """

    def __init__(
        self,
        locking: Locking,
        store: ModelStore,
        installer: Installer,
        *,
        downloads: Path,
        repository: Path,
        remove: Callable[[str], Awaitable[None]],
        switch: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._locking = locking
        self._store = store
        self._installer = installer
        self._downloads = downloads
        self._repository = repository
        self._remove = remove
        self._switch = switch
        self._activities: OrderedDict[str, Activity] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._closing = threading.Event()

    def find(self, activity_id: str) -> Activity | None:
        """One of the last activities; None when it is forgotten or never was."""
        return self._activities.get(activity_id)

    def sync(
        self, document: LockDocument, *, frozen: bool = False, prune: bool = False
    ) -> Activity:
        """Begin to make this machine equal the lock: install, switch, remove, verify, repair.

        Args:
            frozen: do not, if anything would have to be changed; only verify.
            prune: remove models that are not in the lock.

        Raises:
            InvalidLock: it has no models.
            LockDiffers: some of it cannot be done, or `frozen` forbids it; nothing was changed.
        """
        require_models(document)
        # Frozen means equal: models beyond the lock are a difference then.
        actions = self._locking.plan(document, prune=prune)
        refused = [a for a in actions if frozen or a.kind == "conflict"]
        if refused:
            raise LockDiffers(document.name, [str(action) for action in refused])
        activity = Activity("sync", document.name, steps=[Step(action) for action in actions])
        return self._begin(activity, self._sync(activity, document, frozen=frozen))

    def verify(self, document: LockDocument) -> Activity:
        """Begin to hash everything that the lock names.

        Raises:
            InvalidLock: it has no models.
        """
        require_models(document)
        activity = Activity("verify", document.name)
        return self._begin(activity, self._verify(activity, document))

    async def close(self) -> None:
        """Stop what runs."""
        self._closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- running -----------------------------------------------------------------------------

    def _begin(self, activity: Activity, work: Coroutine[Any, Any, None]) -> Activity:
        self._activities[activity.id] = activity
        while len(self._activities) > _KEPT:
            self._activities.popitem(last=False)
        task = asyncio.get_running_loop().create_task(self._run(activity, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # if it never came to its turn
        return activity

    async def _run(self, activity: Activity, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with self._turn:
                await work
        except asyncio.CancelledError:
            activity.error = "The server stopped; run it again."
        except ModelMoraError as error:
            activity.error = error.message
        except Exception as error:
            log.exception("lock activity failed", kind=activity.kind, lock=activity.lock)
            activity.error = f"It failed unexpectedly: {error}"
        activity.state = "failed" if activity.error else "succeeded"
        activity.finished_at = utc_now()
        log.info(
            "lock activity ended", kind=activity.kind, lock=activity.lock, error=activity.error
        )

    async def _verify(self, activity: Activity, document: LockDocument) -> None:
        wanted, absent = self._targets(document)
        activity.drift, activity.error = absent, None
        activity.bytes_total = sum(file.size for target in wanted for file in target.files)

        def progress(done: int, name: str) -> None:
            activity.bytes_done, activity.message = done, f"reading {name}"

        call = partial(verify, wanted, progress=progress, cancelled=self._closing)
        activity.drift += await asyncio.to_thread(call)
        activity.message = "verified"
        if activity.drift:
            count = len(activity.drift)
            activity.error = f"{count} {'thing is' if count == 1 else 'things are'} not as locked."

    def _targets(self, document: LockDocument) -> tuple[list[Target], list[Drift]]:
        return targets(
            document.locked_models,
            {model.model_id: model for model in self._locking.every_model()},
            self._store.source_files,
            downloads=self._downloads,
            repository=self._repository,
        )

    # -- syncing -----------------------------------------------------------------------------

    async def _sync(self, activity: Activity, document: LockDocument, *, frozen: bool) -> None:
        await self._act(activity, document)
        if failed := activity.failed_steps():
            names = ", ".join(step.action.model_id for step in failed)
            activity.error = f"{len(failed)} of {len(activity.steps)} steps failed: {names}."
            return
        await self._verify(activity, document)
        if activity.drift and not frozen:
            await self._repair(activity)
            await self._verify(activity, document)

    async def _act(self, activity: Activity, document: LockDocument) -> None:
        activity.message = "installing"
        installs = activity.steps_to("install")
        for step in installs:  # all at once: the installer knows how many it can do
            self._attempt(step, partial(self._request, step, document))
        for step in installs:
            if step.state == "running":
                await self._await_install(step)
        for step in activity.steps_to("switch"):
            await self._do(step, self._switch(step.action.model_id, step.action.version))
        if not activity.failed_steps():
            for step in activity.steps_to("remove"):
                await self._do(step, self._remove(step.action.model_id))
        for step in activity.steps:
            if step.state == "waiting":
                step.state = "left"

    def _request(self, step: Step, document: LockDocument) -> None:
        entry = document.entry(step.action.model_id)
        assert entry is not None, step.action  # actions to install are made of entries
        if entry.trust_remote_code:  # before the catalog knows of it
            self._installer.check_code(entry.model_id, entry.trust_remote_code)
        bring(self._store, entry, step.action.version)
        self._installer.request(entry.model_id, step.action.version)

    async def _repair(self, activity: Activity) -> None:
        """Install again what is damaged; sources that are intact are not downloaded again."""
        activity.message = "repairing"
        damaged = sorted({(d.model_id, d.version) for d in activity.drift if d.part != "model"})
        bad_sources = {(d.model_id, d.version) for d in activity.drift if d.part == "source"}
        for model_id, name in damaged:
            reason = "some of its files are not as locked"
            action = Action(kind="repair", model_id=model_id, version=name, reason=reason)
            activity.steps.append(step := Step(action, state="running"))
            version = self._store.version(model_id, name)
            if (model_id, name) in bad_sources:
                place = self._downloads / version.triton_name / str(version.triton_version)
                await asyncio.to_thread(remove_tree, place)
            self._attempt(step, partial(self._reinstall, version))
            if step.state == "running":
                await self._await_install(step)

    def _reinstall(self, version: ModelVersion) -> None:
        self._store.set_status(
            version.model_id,
            version.version,
            VersionStatus.FAILED,
            "Some of its files are not as locked; it is being installed again.",
        )
        self._installer.request(version.model_id, version.version)

    async def _await_install(self, step: Step) -> None:
        model_id, name = step.action.model_id, step.action.version
        model = await self._installer.wait(model_id)
        version = self._store.version(model_id, name)
        if version.status is not VersionStatus.READY:
            step.state = "failed"
            step.error = version.error_message or f"is {version.status}"
        elif model.current_version != name:
            await self._do(step, self._switch(model_id, name))
        else:
            step.state = "done"

    def _attempt(self, step: Step, call: Callable[[], None]) -> None:
        step.state = "running"
        try:
            call()
        except ModelMoraError as error:
            step.state, step.error = "failed", error.message

    async def _do(self, step: Step, work: Awaitable[None]) -> None:
        step.state = "running"
        try:
            await work
            step.state = "done"
        except ModelMoraError as error:
            step.state, step.error = "failed", error.message


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
            **pins,
        )
