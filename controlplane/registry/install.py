"""Installs model versions in the background, and takes models away again.

Each installation is a task, with an operation (`operations.py`) to watch and cancel it by, and one
row to tell of it. A row says `downloading` or `exporting` only while its task runs (`recovery.py`
sees to that after a crash); it becomes `ready` after the artefact's folder was renamed into the
model repository, so that a ready version can be loaded. Rows go before folders when a model is
removed: a folder without a row is swept at the next start, a row without a folder would be a
promise.

What a stop or crash of the server interrupted is resumed by the next one: downloads that had come
whole are verified and used again, the conversion begins anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import (
    CurrentVersionProtected,
    ModelMoraError,
    ModelNotFound,
    ValidationFailed,
    VersionNotFound,
)
from controlplane.registry import recovery
from controlplane.registry.catalog import check_lock, pick
from controlplane.registry.conversion import CONVERTER
from controlplane.registry.installation import Installation, Workshop
from controlplane.registry.model import INSTALLING, Model, ModelId, ModelVersion, VersionStatus
from controlplane.registry.operation import (
    CANCELLED,
    INSTALL,
    TUNE,
    Operation,
    OperationError,
    OperationStatus,
)
from controlplane.registry.operation_store import OperationStore
from controlplane.registry.operations import Operations
from controlplane.registry.remote_code import check_permitted
from controlplane.registry.retuning import Retuning, check_tunable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from controlplane.registry.blobs import BlobCache
    from controlplane.registry.engine_choice import EngineChoice
    from controlplane.registry.files import Progress
    from controlplane.registry.patience import HubLimits
    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings

log = structlog.get_logger(__name__)

STOPPED = "The installation was interrupted because the server stopped; install again."


class _Reason(Enum):
    """Why an installation is cancelled, in words for its version."""

    ASKED = "The installation was cancelled; what was downloaded whole is kept."
    REMOVED = "The model was uninstalled."
    STOPPED = STOPPED


async def _nothing_loaded(_version: ModelVersion) -> None:
    """Without a scheduler nothing is in memory."""


@dataclass(eq=False)
class _Job:
    """An installation, its operation and the task that does it."""

    installation: Installation
    operation_id: str
    task: asyncio.Task[None]
    cancelling: _Reason | None = None


class Installer:
    """Runs installations; all calls on one event loop.

    Attributes:
        operations: the record of all operations, and those under way.
        reload: has a version that is in memory served from its new files, after a tuning.

    Args:
        converter: command line of the converter, up to its options.
        limits: patience with the hub.
    """

    def __init__(
        self,
        store: ModelStore,
        repository: ModelRepository,
        settings: Settings,
        *,
        converter: Sequence[str] = CONVERTER,
        limits: HubLimits | None = None,
    ) -> None:
        self._store = store
        self._shop = Workshop(store, repository, settings, converter=converter, limits=limits)
        self.operations = Operations(OperationStore(store.db))
        self.operations.cancellers[INSTALL] = self._cancel_operation
        self.operations.cancellers[TUNE] = self._cancel_operation
        self.reload: Callable[[ModelVersion], Awaitable[None]] = _nothing_loaded
        self._jobs: dict[str, _Job] = {}  # by id of the version
        self._removals: dict[str, asyncio.Task[None]] = {}  # by model id

    @property
    def shop(self) -> Workshop:
        """What installations share, for registrations that look at the source first."""
        return self._shop

    @property
    def cache(self) -> BlobCache:
        """The cache of received files."""
        return self._shop.cache

    def recover(self) -> None:
        """At start, before anything else: put right what a crash left."""
        recovery.recover(self._store, self._shop.repository, self._shop.downloads)

    def request(self, model_id: str, version: str | None = None) -> Model:
        """Start installing a version (None: the current one) unless it is ready or under way.

        Returns:
            The model, the version's status now being `downloading` or what it was.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
            RemoteCodeRefused: the version trusts code, and the server does not (any more).
        """
        model = self._store.get(model_id)
        chosen = pick(model, version)
        if chosen.id in self._jobs or chosen.status is VersionStatus.READY:
            return model
        self.check_code(f"{model.model_id} version {chosen.version}", chosen.trust_remote_code)
        self._store.set_status(model.model_id, chosen.version, VersionStatus.DOWNLOADING)
        operation = self.operations.begin(chosen)
        report = self.operations.reporter(operation.id)
        self._start(Installation(self._shop, model, chosen, report), operation)
        return self._store.get(model.model_id)

    def _start(self, installation: Installation, operation: Operation) -> None:
        task = asyncio.get_running_loop().create_task(self._run(installation))
        self._jobs[installation.version.id] = _Job(installation, operation.id, task)

    def tune(
        self, model_id: str, version: str | None = None, choice: EngineChoice | None = None
    ) -> Operation:
        """Start measuring a ready version's engines again, or join what is under way for it.

        Args:
            version: None is the current one.
            choice: what is to serve it; None leaves it to measurement. It is kept.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
            ValidationFailed: it is not ready, or not exported.
            RemoteCodeRefused: the version trusts code, and the server does not (any more).
        """
        chosen = pick(self._store.get(model_id), version)
        if (job := self._jobs.get(chosen.id)) is not None:
            return self.operations.get(job.operation_id)
        check_tunable(chosen)
        self.check_code(f"{chosen.model_id} version {chosen.version}", chosen.trust_remote_code)
        self._store.choose_engine(chosen.model_id, chosen.version, choice)
        return self._tune(chosen.model_id, chosen.version, chosen.engine_choice)

    def _tune(self, model_id: str, version: str, previous: EngineChoice | None = None) -> Operation:
        model = self._store.get(model_id)
        chosen = pick(model, version)
        operation = self.operations.begin(chosen, TUNE)
        report = self.operations.reporter(operation.id)
        tuning = Retuning(self._shop, model, chosen, report, self.reload, previous)
        self._start(tuning, operation)
        return operation

    def _take_back(self, tuning: Retuning) -> None:
        """A tuning failed: the next conversion is to be asked for what serves."""
        name, version = str(tuning.model_id), tuning.version.version
        try:
            self._store.choose_engine(name, version, tuning.previous)
        except ModelMoraError as error:  # removed meanwhile; or a full disk, for one
            log.warning("engine choice not taken back", model_id=name, error=error.message)

    def choose_engine(self, model_id: str, version: str, choice: EngineChoice | None) -> None:
        """What serves a version that is to be installed; None leaves it to measurement.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
            ValidationFailed: it is installed with another one, or just being installed.
        """
        chosen = pick(self._store.get(model_id), version)
        what = f"{chosen.model_id}@{chosen.version}"
        if chosen.status is VersionStatus.READY:
            if choice is None or choice.made(chosen.artefact or {}):
                return
            made = chosen.artefact or {}
            raise ValidationFailed.field(
                "engine",
                f"of {what} is {made.get('engine')} {made.get('precision')} already; to change "
                f"that: modelmora tune {what}",
            )
        if chosen.id in self._jobs and choice != chosen.engine_choice:
            raise ValidationFailed.field(
                "engine", f"cannot be chosen any more: {what} is being installed; cancel that first"
            )
        self._store.choose_engine(chosen.model_id, chosen.version, choice)

    def check_code(self, what: str, trusted: bool) -> None:
        """Find out whether a version that trusts its repository's code may be installed here.

        Raises:
            RemoteCodeRefused.
        """
        check_permitted(what, trusted=trusted, allowed=self._shop.settings.allow_remote_code)

    def install(self, model_id: str, version: str | None = None) -> Operation:
        """As `request`; the operation that does it, did it, or is at it since an earlier request.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
        """
        chosen = pick(self.request(model_id, version), version)
        job = self._jobs.get(chosen.id)
        if job is None:
            return self.operations.installed(chosen)
        return self.operations.get(job.operation_id)

    def resume(self) -> None:
        """At start, after `recover`: go on with the operations that the last server left."""
        for operation in self.operations.waiting(INSTALL, TUNE):
            version = self._version_of(operation)
            if version is None or (
                version.status is VersionStatus.READY and operation.kind != TUNE
            ):
                self._conclude(operation, version)
            elif not self.operations.give_up(operation):
                self._resume(operation, version)

    def _resume(self, operation: Operation, version: ModelVersion) -> None:
        log.info("resuming installation", model_id=version.model_id, version=version.version)
        try:
            if version.status is VersionStatus.READY:  # else its files were being replaced
                self._tune(version.model_id, version.version)
            else:
                self.request(version.model_id, version.version)
        except ModelMoraError as error:  # a full disk, for one: it must not keep us from serving
            log.warning("not resumed", model_id=version.model_id, error=error.message)
            message = f"It was interrupted and could not be resumed: {error.message}"
            self._finish(operation.id, OperationStatus.FAILED, error.code, message)

    async def _cancel_operation(self, operation_id: str) -> None:
        jobs = [job for job in self._jobs.values() if job.operation_id == operation_id]
        await self._cancel(jobs, _Reason.ASKED)

    def progress(self, model_id: str, version: str | None = None) -> Progress | None:
        """How far an installation of this model is, of `version` or else the one begun last.

        None when none runs.
        """
        jobs = self._jobs_of(model_id)
        if version is not None:
            jobs = [job for job in jobs if job.installation.version.version == version]
        return jobs[-1].installation.progress if jobs else None

    async def wait(self, model_id: str) -> Model:
        """Wait until nothing is being installed for a model, well or not; the model then.

        Raises:
            InvalidModelId, ModelNotFound.
        """
        while jobs := self._jobs_of(model_id):
            await asyncio.wait([job.task for job in jobs])
        return self._store.get(model_id)

    async def uninstall(
        self, model_id: str, *, force: bool = False, expected_version: int | None = None
    ) -> None:
        """Remove a model with everything that belongs to it; a running installation is stopped.

        Raises:
            InvalidModelId, ModelNotFound.
            ConcurrentModification: the model is not, or no longer, at `expected_version`.
            ModelLocked: an active lock holds it, and `force` is not set.
        """
        model = self._store.get(model_id)
        check_lock(model, expected_version)
        name = model.model_id
        if not force:
            self._store.check_unlocked(name)
        while jobs := self._jobs_of(name):
            await self._cancel(jobs, _Reason.REMOVED)
        self._store.delete(name, force=force, expected_version=expected_version)
        removal = asyncio.get_running_loop().create_task(self._remove_files(ModelId.parse(name)))
        self._removals[name] = removal
        removal.add_done_callback(lambda _: self._removals.pop(name, None))
        await asyncio.shield(removal)

    async def uninstall_version(self, model_id: str, version: str) -> None:
        """Remove a version that is not the current one, with its artefact and its download.

        A running installation of it is stopped.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound, CurrentVersionProtected.
        """
        model = self._store.get(model_id)
        gone = pick(model, version)
        if gone.version == model.current_version:
            raise CurrentVersionProtected(model.model_id, gone.version)
        while gone.id in self._jobs:
            await self._cancel([self._jobs[gone.id]], _Reason.REMOVED)
        self._store.remove_version(model.model_id, gone.version)
        removal = asyncio.get_running_loop().create_task(self._remove_version_files(gone))
        key = f"{model.model_id}@{gone.triton_version}"
        self._removals[key] = removal
        removal.add_done_callback(lambda _: self._removals.pop(key, None))
        await asyncio.shield(removal)

    async def close(self) -> None:
        """Stop all installations; their versions say so, `resume` goes on with them."""
        while self._jobs:
            await self._cancel(list(self._jobs.values()), _Reason.STOPPED)
        if self._removals:
            await asyncio.wait(list(self._removals.values()))
        await self._shop.looks.close()
        self._shop.threads.shutdown()

    async def _run(self, installation: Installation) -> None:
        name, version = str(installation.model_id), installation.version.version
        try:
            removal = self._removals.get(name)
            if removal is not None:  # of an earlier registration under this name
                await asyncio.wait([removal])
            await installation.run()
            log.info("model installed", model_id=name, version=version)
        except asyncio.CancelledError:
            self._end_cancelled(installation)
        except ModelMoraError as error:
            log.warning("installation failed", model_id=name, error=error.message)
            self._end(installation, error.code, error.message)
        except Exception as error:
            log.exception("installation failed", model_id=name, version=version)
            message = f"The installation failed unexpectedly: {error}"
            self._end(installation, ModelMoraError.code, message)
        else:
            self._end(installation)

    def _end_cancelled(self, installation: Installation) -> None:
        job = self._jobs[installation.version.id]
        reason = job.cancelling or _Reason.STOPPED
        if reason is _Reason.STOPPED:
            self.operations.suspend(job.operation_id, "interrupted; goes on with the next server")
        self._end(installation, CANCELLED, reason.value)

    def _end(self, installation: Installation, code: str = "", message: str = "") -> None:
        """The task is over: row, operation and list of jobs say so. No `code` means well."""
        job = self._jobs.pop(installation.version.id)
        tuning = installation if isinstance(installation, Retuning) else None
        if code and tuning is None and self._fail(installation, message):
            # It was ready before it could be cancelled: done is done.
            code = ""
        if job.cancelling is _Reason.STOPPED and code:
            return
        if code and tuning is not None and not tuning.replaced:
            self._take_back(tuning)
        status = OperationStatus.SUCCEEDED
        if code:
            cancelled = code == CANCELLED
            status = OperationStatus.CANCELLED if cancelled else OperationStatus.FAILED
        self._finish(job.operation_id, status, code, message)

    def _finish(self, operation_id: str, status: OperationStatus, code: str, message: str) -> None:
        error = OperationError(code, message) if code else None
        self.operations.finish(operation_id, status, error)

    def _fail(self, installation: Installation, message: str) -> bool:
        """Mark the version as failed unless it is gone; True when it is ready instead."""
        name, version = str(installation.model_id), installation.version.version
        try:
            status = self._store.version(name, version).status
            if status in INSTALLING:
                self._store.set_status(name, version, VersionStatus.FAILED, message)
        except (ModelNotFound, VersionNotFound):
            return False
        except ModelMoraError as error:  # a full disk, for one; the next start puts it right
            log.warning("failure not recorded", model_id=name, error=error.message)
            return False
        return status is VersionStatus.READY

    def _version_of(self, operation: Operation) -> ModelVersion | None:
        """The version that an operation was for, unless it was removed since."""
        assert operation.model_id is not None, operation  # an installation's
        try:
            version = self._store.version(operation.model_id, operation.version)
        except (ModelNotFound, VersionNotFound):
            return None
        return version if version.id == operation.version_id else None

    def _conclude(self, operation: Operation, version: ModelVersion | None) -> None:
        """An operation that has nothing left to do: its model is ready, or gone."""
        if version is None:
            message = _Reason.REMOVED.value
            self._finish(operation.id, OperationStatus.CANCELLED, CANCELLED, message)
        else:
            self.operations.finish(operation.id, OperationStatus.SUCCEEDED)

    def _jobs_of(self, model_id: str) -> list[_Job]:
        name = ModelId.from_any_spelling(model_id)
        return [job for job in self._jobs.values() if job.installation.model_id == name]

    async def _cancel(self, jobs: list[_Job], reason: _Reason) -> None:
        for job in jobs:
            if job.cancelling is None:  # a second cancellation would cut short its cleaning up
                job.cancelling = reason
                job.task.cancel()
        await asyncio.wait([job.task for job in jobs])
        for job in jobs:
            # A task that is cancelled before its first step never gets to its own end.
            if job.installation.version.id in self._jobs:
                self._end_cancelled(job.installation)

    async def _remove_version_files(self, version: ModelVersion) -> None:
        name, number = ModelId.parse(version.model_id), version.triton_version
        try:
            await asyncio.to_thread(self._shop.repository.remove_version, name, number)
            folder = self._shop.downloads / name.triton_name / str(number)
            await asyncio.to_thread(self._shop.cache.remove_download, folder, version.model_id)
        except OSError:
            # The row is gone already; the next start sweeps what is left.
            log.exception("files of a removed version are left", model_id=version.model_id)

    async def _remove_files(self, model_id: ModelId) -> None:
        try:
            await asyncio.to_thread(self._shop.repository.remove, model_id)
            folder = self._shop.downloads / model_id.triton_name
            await asyncio.to_thread(self._shop.cache.remove_download, folder, str(model_id))
        except OSError:
            # The model is gone already; the next start sweeps what is left.
            log.exception("files of a removed model are left", model_id=str(model_id))
