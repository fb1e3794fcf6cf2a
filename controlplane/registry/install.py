"""Installs model versions: resolve, download, convert, publish; and takes them away again.

Each installation is a background task with one row to tell of it. A row says `downloading` or
`exporting` only while its task runs (`recovery.py` sees to that after a crash); it becomes `ready`
after the artefact's folder was renamed into the model repository, so a ready version can be loaded.
Rows go before folders when a model is removed: a folder without a row is swept at the next start,
a row without a folder would be a promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog

from controlplane.errors import (
    DownloadFailed,
    ExportFailed,
    InvalidStateTransition,
    ModelMoraError,
    ModelNotFound,
    VersionNotFound,
)
from controlplane.registry import recovery
from controlplane.registry.catalog import pick
from controlplane.registry.conversion import CONVERTER, convert
from controlplane.registry.disk import remove_tree, reporting_full_disk, require_space
from controlplane.registry.files import FetchedSource, Progress, SourceFile, source_checksum
from controlplane.registry.model import Model, ModelId, ModelVersion, VersionStatus
from controlplane.registry.sources import HubLimits, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings

log = structlog.get_logger(__name__)

SHUTDOWN = "The installation was interrupted because the server stopped; install again."
_DOWNLOADS_AT_ONCE = 4
_T = TypeVar("_T")


class _Artefact(msgspec.Struct):
    """What the registry itself needs of a converter's manifest."""

    backend: str
    engine: str
    files: list[SourceFile]


@dataclass(eq=False)
class _Job:
    """One installation that runs."""

    model: Model
    version: ModelVersion
    progress: Progress
    cancelled: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None

    @property
    def model_id(self) -> ModelId:
        return ModelId.parse(self.model.model_id)

    def report(self, progress: Progress) -> None:
        self.progress = progress


class Installer:
    """Runs installations in the background; use it on one event loop.

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
        self._repository = repository
        self._settings = settings
        self._converter = converter
        self._limits = limits
        self._downloads = settings.data_dir.absolute() / "downloads"
        self._jobs: dict[str, _Job] = {}
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="download")
        # A conversion takes all cores and several times the model's size in memory.
        self._converting = asyncio.Semaphore(1)

    def recover(self) -> None:
        """At start, before anything else: put right what a crash left."""
        recovery.recover(self._store, self._repository, self._downloads)

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
        first = Progress(phase="downloading", step="resolve", message="asking the source")
        job = _Job(model, chosen, first)
        self._jobs[chosen.id] = job
        job.task = asyncio.get_running_loop().create_task(self._run(job))
        return self._store.get(model.model_id)

    def progress(self, model_id: str) -> Progress | None:
        """How far the installation begun last is; None when none runs for this model."""
        jobs = self._jobs_of(model_id)
        return jobs[-1].progress if jobs else None

    async def wait(self, model_id: str) -> Model:
        """Wait until nothing is being installed for a model, well or not; the model then.

        Raises:
            InvalidModelId, ModelNotFound.
        """
        while jobs := self._jobs_of(model_id):
            await asyncio.wait([job.task for job in jobs if job.task])
        return self._store.get(model_id)

    async def uninstall(self, model_id: str) -> None:
        """Remove a model with everything that belongs to it; a running installation is stopped.

        Raises:
            InvalidModelId, ModelNotFound.
        """
        name = ModelId.parse(self._store.get(model_id).model_id)
        while jobs := self._jobs_of(model_id):
            await self._cancel(jobs)
        self._store.delete(model_id)
        removal = asyncio.get_running_loop().create_task(self._remove_files(name))
        self._removals[str(name)] = removal
        removal.add_done_callback(lambda _: self._removals.pop(str(name), None))
        await asyncio.shield(removal)

    async def close(self) -> None:
        """Stop all installations; their versions say that they were interrupted."""
        while self._jobs:
            await self._cancel(list(self._jobs.values()))
        if self._removals:
            await asyncio.wait(list(self._removals.values()))
        self._threads.shutdown()

    # -- one installation ----------------------------------------------------------------------

    async def _run(self, job: _Job) -> None:
        model_id, version = job.model.model_id, job.version.version
        try:
            await self._install(job)
            log.info("model installed", model_id=model_id, version=version)
        except asyncio.CancelledError:
            self._fail(job, SHUTDOWN)
        except ModelMoraError as error:
            log.warning("installation failed", model_id=model_id, error=error.message)
            self._fail(job, error.message)
        except Exception as error:
            log.exception("installation failed", model_id=model_id, version=version)
            self._fail(job, f"The installation failed unexpectedly: {error}")
        finally:
            del self._jobs[job.version.id]

    async def _install(self, job: _Job) -> None:
        removal = self._removals.get(job.model.model_id)
        if removal is not None:  # of an earlier registration under this name
            await asyncio.wait([removal])
        source = await self._download(job)
        name, version = job.model.model_id, job.version.version
        self._store.check_pin(name, version, source.checksum)
        self._store.set_status(name, version, VersionStatus.EXPORTING)
        job.report(Progress(phase="exporting", step="wait", message="waiting for the converter"))
        async with self._converting:
            await self._convert(job, source)

    async def _download(self, job: _Job) -> FetchedSource:
        call = partial(
            fetch,
            job.model_id,
            job.version.revision or job.version.version,
            job.model.source_url,
            self._source_folder(job),
            allow_pickle=self._settings.allow_pickle,
            progress=job.report,
            cancelled=job.cancelled,
            checksum=job.version.checksum,
            limits=self._limits,
        )
        loop = asyncio.get_running_loop()
        waiting = _to_its_end(loop.run_in_executor(self._threads, call), job.cancelled.set)
        timeout = self._settings.install_timeout
        try:
            return await asyncio.wait_for(waiting, timeout)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise DownloadFailed(
                f"The download took longer than {timeout:g} s (MODELMORA_INSTALL_TIMEOUT)."
            ) from error

    async def _convert(self, job: _Job, source: FetchedSource) -> None:
        size = sum(file.size for file in source.files)
        with reporting_full_disk(self._repository.root, lambda: size):
            require_space(self._repository.root, size)
            staging = self._repository.new_staging()
            output = staging / "artefact"
            try:
                manifest = await convert(
                    self._command(job, source, output),
                    timeout=self._settings.install_timeout,
                    on_progress=job.report,
                )
                await self._publish(job, source, manifest, output)
            finally:
                await asyncio.shield(asyncio.to_thread(remove_tree, staging))

    def _command(self, job: _Job, source: FetchedSource, output: Path) -> list[str]:
        options = {
            "--task": job.model.task_type.value,
            "--source": str(self._source_folder(job)),
            "--output": str(output),
            "--model-id": job.model.model_id,
            "--version": job.version.version,
            "--revision": source.revision,
            "--source-checksum": source.checksum,
        }
        command = [*self._converter]
        for name, value in options.items():
            command += [name, value] if value is not None else []
        return [*command, "--allow-pickle"] if self._settings.allow_pickle else command

    async def _publish(
        self, job: _Job, source: FetchedSource, manifest: dict[str, Any], output: Path
    ) -> None:
        """Pin, move the artefact into place, and only then call the version ready."""
        try:
            artefact = msgspec.convert(manifest, _Artefact)
        except msgspec.ValidationError as error:
            raise ExportFailed(f"The converter's manifest cannot be read: {error}.") from error
        name, version = job.model.model_id, job.version.version
        self._store.pin(
            name,
            version,
            revision=source.revision,
            checksum=source.checksum,
            artifact_uri=source.artifact_uri,
        )
        number = job.version.triton_version
        publishing = asyncio.to_thread(self._repository.publish, job.model_id, number, output)
        await _to_its_end(asyncio.ensure_future(publishing))
        try:
            self._store.mark_ready(
                name,
                version,
                manifest=manifest,
                artefact_bytes=sum(file.size for file in artefact.files),
                artefact_checksum=source_checksum(artefact.files),
            )
        except BaseException:
            self._repository.remove_version(job.model_id, number)
            raise

    def _fail(self, job: _Job, message: str) -> None:
        # The row is gone when the model was removed meanwhile; ready when it was cancelled late.
        with contextlib.suppress(ModelNotFound, VersionNotFound, InvalidStateTransition):
            self._store.set_status(
                job.model.model_id, job.version.version, VersionStatus.FAILED, message
            )

    # -- parts -----------------------------------------------------------------------------------

    def _jobs_of(self, model_id: str) -> list[_Job]:
        name = str(ModelId.from_any_spelling(model_id))
        return [job for job in self._jobs.values() if job.model.model_id == name]

    def _source_folder(self, job: _Job) -> Path:
        version = job.version
        return self._downloads / version.triton_name / str(version.triton_version)

    async def _cancel(self, jobs: list[_Job]) -> None:
        tasks = [job.task for job in jobs if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _remove_files(self, model_id: ModelId) -> None:
        try:
            await asyncio.to_thread(self._repository.remove, model_id)
            await asyncio.to_thread(remove_tree, self._downloads / model_id.triton_name)
        except OSError:
            # The model is gone already; the next start sweeps what is left.
            log.exception("files of a removed model are left", model_id=str(model_id))


async def _to_its_end(
    work: asyncio.Future[_T], on_cancel: Callable[[], object] = lambda: None
) -> _T:
    """Await work in a thread, which cannot be interrupted: when cancelled, wait for it first.

    Without that the thread would go on writing into folders that are being removed.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        on_cancel()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # looked at, so that it is not reported as lost
        raise
