"""Installs model versions in the background, and takes models away again.

Each installation is a task with one row to tell of it. A row says `downloading` or `exporting` only
while its task runs (`recovery.py` sees to that after a crash); it becomes `ready` after the
artefact's folder was renamed into the model repository, so that a ready version can be loaded. Rows
go before folders when a model is removed: a folder without a row is swept at the next start, a row
without a folder would be a promise.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import (
    CurrentVersionProtected,
    InvalidStateTransition,
    ModelMoraError,
    ModelNotFound,
    VersionNotFound,
)
from controlplane.registry import recovery
from controlplane.registry.catalog import pick
from controlplane.registry.conversion import CONVERTER
from controlplane.registry.disk import remove_tree
from controlplane.registry.installation import Installation, Workshop
from controlplane.registry.model import Model, ModelId, ModelVersion, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.registry.files import Progress
    from controlplane.registry.patience import HubLimits
    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings

log = structlog.get_logger(__name__)

STOPPED = "The installation was interrupted because the server stopped; install again."


@dataclass(eq=False)
class _Job:
    """An installation and the task that does it."""

    installation: Installation
    task: asyncio.Task[None]
    cancelling: bool = False


class Installer:
    """Runs installations; all calls on one event loop.

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
        self._jobs: dict[str, _Job] = {}  # by id of the version
        self._removals: dict[str, asyncio.Task[None]] = {}  # by model id

    def recover(self) -> None:
        """At start, before anything else: put right what a crash left."""
        recovery.recover(self._store, self._shop.repository, self._shop.downloads)

    def request(self, model_id: str, version: str | None = None) -> Model:
        """Start installing a version (None: the current one) unless it is ready or under way.

        Returns:
            The model, the version's status now being `downloading` or what it was.

        Raises:
            InvalidModelId, ModelNotFound, VersionNotFound.
        """
        model = self._store.get(model_id)
        chosen = pick(model, version)
        if chosen.id in self._jobs or chosen.status is VersionStatus.READY:
            return model
        self._store.set_status(model.model_id, chosen.version, VersionStatus.DOWNLOADING)
        installation = Installation(self._shop, model, chosen)
        task = asyncio.get_running_loop().create_task(self._run(installation))
        self._jobs[chosen.id] = _Job(installation, task)
        return self._store.get(model.model_id)

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

    async def uninstall(self, model_id: str) -> None:
        """Remove a model with everything that belongs to it; a running installation is stopped.

        Raises:
            InvalidModelId, ModelNotFound.
        """
        name = self._store.get(model_id).model_id
        while jobs := self._jobs_of(name):
            await self._cancel(jobs)
        self._store.delete(name)
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
            await self._cancel([self._jobs[gone.id]])
        self._store.remove_version(model.model_id, gone.version)
        removal = asyncio.get_running_loop().create_task(self._remove_version_files(gone))
        key = f"{model.model_id}@{gone.triton_version}"
        self._removals[key] = removal
        removal.add_done_callback(lambda _: self._removals.pop(key, None))
        await asyncio.shield(removal)

    async def close(self) -> None:
        """Stop all installations; their versions say that they were interrupted."""
        while self._jobs:
            await self._cancel(list(self._jobs.values()))
        if self._removals:
            await asyncio.wait(list(self._removals.values()))
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
            self._fail(installation, STOPPED)
        except ModelMoraError as error:
            log.warning("installation failed", model_id=name, error=error.message)
            self._fail(installation, error.message)
        except Exception as error:
            log.exception("installation failed", model_id=name, version=version)
            self._fail(installation, f"The installation failed unexpectedly: {error}")
        finally:
            self._jobs.pop(installation.version.id, None)

    def _fail(self, installation: Installation, message: str) -> None:
        # No row when the model was removed meanwhile; no such move when it had just become ready.
        with contextlib.suppress(ModelNotFound, VersionNotFound, InvalidStateTransition):
            self._store.set_status(
                str(installation.model_id),
                installation.version.version,
                VersionStatus.FAILED,
                message,
            )

    def _jobs_of(self, model_id: str) -> list[_Job]:
        name = ModelId.from_any_spelling(model_id)
        return [job for job in self._jobs.values() if job.installation.model_id == name]

    async def _cancel(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if not job.cancelling:  # a second cancellation would cut short its cleaning up
                job.cancelling = True
                job.task.cancel()
        await asyncio.wait([job.task for job in jobs])
        for job in jobs:
            # A task that is cancelled before its first step never gets to its own end.
            if self._jobs.pop(job.installation.version.id, None) is not None:
                self._fail(job.installation, STOPPED)

    async def _remove_version_files(self, version: ModelVersion) -> None:
        name, number = ModelId.parse(version.model_id), version.triton_version
        try:
            await asyncio.to_thread(self._shop.repository.remove_version, name, number)
            folder = self._shop.downloads / name.triton_name / str(number)
            await asyncio.to_thread(remove_tree, folder)
        except OSError:
            # The row is gone already; the next start sweeps what is left.
            log.exception("files of a removed version are left", model_id=version.model_id)

    async def _remove_files(self, model_id: ModelId) -> None:
        try:
            await asyncio.to_thread(self._shop.repository.remove, model_id)
            folder = self._shop.downloads / model_id.triton_name
            await asyncio.to_thread(remove_tree, folder)
        except OSError:
            # The model is gone already; the next start sweeps what is left.
            log.exception("files of a removed model are left", model_id=str(model_id))
