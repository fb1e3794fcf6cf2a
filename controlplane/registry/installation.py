"""One installation: resolve and download, convert, pin and publish a version."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from controlplane.errors import DownloadFailed, ExportFailed, ValidationFailed
from controlplane.registry import plugins
from controlplane.registry.blobs import BlobCache
from controlplane.registry.conversion import CONVERTER, convert
from controlplane.registry.curated import curated_facts
from controlplane.registry.disk import remove_tree, reporting_full_disk, require_space
from controlplane.registry.facts import FACTS, explicit_in, merged, to_metadata
from controlplane.registry.files import FetchedSource, Progress, SourceFile, source_checksum
from controlplane.registry.metadata import read_folder
from controlplane.registry.model import Model, ModelId, ModelVersion, TaskType, VersionStatus
from controlplane.registry.pending_looks import PendingLooks
from controlplane.registry.ready_artefact import prepare
from controlplane.registry.ready_models import ServerFacts, is_ready_source
from controlplane.registry.remote_code import check_conversion, check_permitted
from controlplane.registry.sources import HubLimits, SourceRules, fetch, rules_of
from controlplane.registry.waiting import to_its_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from controlplane.registry.engine_choice import EngineChoice
    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings

log = structlog.get_logger(__name__)

_DOWNLOADS_AT_ONCE = 4


class Artefact(msgspec.Struct):
    """What the registry itself needs of a converter's manifest."""

    backend: str
    engine: str
    files: list[SourceFile]


class Workshop:
    """What installations share.

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
        self.store = store
        self.repository = repository
        self.settings = settings
        self.converter = converter
        self.limits = limits
        self.downloads = settings.data_dir.absolute() / "downloads"
        self.cache = BlobCache(settings.data_dir.absolute() / "cache", self.downloads)
        self.threads = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="download")
        self.looks = PendingLooks()
        self.downloading = asyncio.Semaphore(_DOWNLOADS_AT_ONCE)
        # A conversion takes all cores and several times the model's size in memory.
        self.converting = asyncio.Semaphore(1)


class Installation:
    """One version being installed; its row is `downloading` when this begins.

    Args:
        report: called with each progress, from any thread; first when its turn has come.

    Attributes:
        progress: how far it is.
    """

    def __init__(
        self,
        workshop: Workshop,
        model: Model,
        version: ModelVersion,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.model_id = ModelId.parse(model.model_id)
        self.version = version
        self.progress = Progress(
            phase="downloading", step="resolve", message="asking the source for its files"
        )
        self._model = model
        self._tell = report
        self._shop = workshop
        self._cancelled = threading.Event()
        self._source = workshop.downloads / self.model_id.triton_name / str(version.triton_version)

    async def run(self) -> None:
        """Do it all; the row is `ready` at the end.

        When it is cancelled or fails, no artefact is published; a downloaded source stays for the
        next attempt.

        Raises:
            ModelMoraError: why it failed; the row's status is left to the caller.
        """
        store, name = self._shop.store, self._model.model_id
        if self._model.task_type.of_plugin:  # before gigabytes come that nobody can convert
            task = self._model.task_type.value
            await asyncio.to_thread(plugins.require, plugins.CONVERTER, task)
        async with self._shop.downloading:
            self._report(self.progress)
            source = await self._download()
        store.check_pin(name, self.version.version, source.checksum)
        ready_made = is_ready_source(source.files)
        self._check_task(ready_made=ready_made)
        await self._describe()
        store.set_status(name, self.version.version, VersionStatus.EXPORTING)
        if ready_made:
            await self._take_as_it_is(source)
            return
        self._report(Progress(phase="exporting", step="wait", message="waiting for the converter"))
        async with self._shop.converting:
            await self._convert(source)

    def _report(self, progress: Progress) -> None:
        self.progress = progress
        self._tell(progress)

    async def _download(self) -> FetchedSource:
        call = partial(
            fetch,
            self.model_id,
            self.version.revision or self.version.version,
            self._model.source_url,
            self._source,
            cache=self._shop.cache,
            rules=self._rules(),
            progress=self._report,
            cancelled=self._cancelled,
            checksum=self.version.checksum,
            limits=self._shop.limits,
        )
        loop = asyncio.get_running_loop()
        waiting = to_its_end(loop.run_in_executor(self._shop.threads, call), self._cancelled.set)
        timeout = self._shop.settings.install_timeout
        try:
            return await asyncio.wait_for(waiting, timeout)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise DownloadFailed(
                f"The download took longer than {timeout:g} s (MODELMORA_INSTALL_TIMEOUT)."
            ) from error

    def _rules(self) -> SourceRules:
        """What the operator allows, and this version wants, of its source.

        Raises:
            RemoteCodeRefused: it wants more than is allowed.
        """
        settings, trusted = self._shop.settings, self.version.trust_remote_code
        what = f"{self._model.model_id} version {self.version.version}"
        check_permitted(what, trusted=trusted, allowed=settings.allow_remote_code)
        return msgspec.structs.replace(
            rules_of(settings), trust_code=trusted, any_layout=self._model.task_type.of_plugin
        )

    async def _describe(self) -> None:
        """Keep what the downloaded files say about the model, and the curated list."""
        metadata = self._shop.store.version(str(self.model_id), self.version.version).metadata
        files = await asyncio.to_thread(read_folder, self._source)
        curated = curated_facts(self.model_id, self._shop.settings.data_dir)
        facts = merged(files, curated, explicit_in(metadata))
        self._shop.store.describe(
            str(self.model_id), self.version.version, {FACTS: to_metadata(facts)}
        )

    def _check_task(self, *, ready_made: bool) -> None:
        """What a model does cannot change any more, and decides who can make it an artefact."""
        task = self._model.task_type
        if ready_made == (task is TaskType.CUSTOM):
            return
        what = "no ready-made Triton model (config.pbtxt and version folders), as custom ones are"
        if ready_made:
            what = "a ready-made Triton model, whose task is custom"
        raise ValidationFailed.field(
            "task_type",
            f"is {task}, and the source is {what}: uninstall it, install without --task",
        )

    async def _convert(self, source: FetchedSource) -> None:
        async with self._staged(source) as output:
            manifest = await convert(
                self._command(source, output),
                alone=self.version.trust_remote_code,
                timeout=self._shop.settings.install_timeout,
                on_progress=self._report,
            )
            self._tell_engine(manifest)
            await self._publish(source, manifest, output)

    def _tell_engine(self, manifest: dict[str, Any]) -> None:
        """Say it where the artefact is not served as its lock says."""
        choice = self.version.engine_choice
        if choice is not None and not choice.made(manifest):
            log.warning(
                "this machine serves the model with another engine than its lock says",
                model_id=self._model.model_id,
                wanted=str(choice),
                chosen=f"{manifest.get('engine')} {manifest.get('precision')}",
            )

    async def _take_as_it_is(self, source: FetchedSource) -> None:
        """A ready-made Triton model: checked and copied, nothing is converted."""
        self._report(Progress(phase="exporting", step="check", message="checking the Triton model"))
        external = self._shop.settings.triton_grpc_url is not None
        server = ServerFacts(
            embedded=not external,
            gpu=_has_gpu(),
            installed=frozenset(self._shop.store.triton_names()),
        )
        async with self._staged(source) as output:
            work = asyncio.to_thread(
                prepare,
                self.model_id,
                self.version.version,
                self.version.triton_version,
                self._source,
                source,
                output,
                server,
            )
            manifest = await to_its_end(asyncio.ensure_future(work))
            # before it is pinned: the folder may be put right and installed again
            number = self.version.triton_version
            self._shop.repository.check_root_files(self.model_id, number, manifest)
            await self._publish(source, manifest, output)

    @contextlib.asynccontextmanager
    async def _staged(self, source: FetchedSource) -> AsyncIterator[Path]:
        """Where an artefact comes to be; nothing is left of it but what was published."""
        size = sum(file.size for file in source.files)
        with reporting_full_disk(self._shop.repository.root, lambda: size):
            require_space(self._shop.repository.root, size)
            staging = self._shop.repository.new_staging()
            try:
                yield staging / "artefact"
            finally:
                await asyncio.shield(asyncio.to_thread(remove_tree, staging))

    def _command(self, source: FetchedSource, output: Path) -> list[str]:
        options = {
            "--task": self._model.task_type.value,
            "--source": str(self._source),
            "--output": str(output),
            "--model-id": self._model.model_id,
            "--version": self.version.version,
            "--revision": source.revision,
            "--source-checksum": source.checksum,
        }
        command = [*self._shop.converter]
        for name, value in options.items():
            command += [name, value] if value is not None else []
        settings = self._shop.settings
        if settings.allow_pickle:
            command.append("--allow-pickle")
        if check_conversion(self.version, allowed=settings.allow_remote_code):
            command.append("--trust-remote-code")
        return command + _engine_options(self.version.engine_choice)

    async def _publish(self, source: FetchedSource, manifest: dict[str, Any], output: Path) -> None:
        """Pin, move the artefact into place, and only then call the version ready."""
        artefact = read_artefact(manifest)
        name, version = self._model.model_id, self.version.version
        self._shop.store.pin(
            name,
            version,
            revision=source.revision,
            checksum=source.checksum,
            artifact_uri=source.artifact_uri,
            files=source.files,
        )
        number = self.version.triton_version
        publishing = asyncio.to_thread(self._shop.repository.publish, self.model_id, number, output)
        try:
            await to_its_end(asyncio.ensure_future(publishing))
            self._shop.store.mark_ready(
                name,
                version,
                manifest=manifest,
                artefact_bytes=sum(file.size for file in artefact.files),
                artefact_checksum=source_checksum(artefact.files),
            )
        except BaseException:
            self._shop.repository.remove_version(self.model_id, number)
            raise


def read_artefact(manifest: dict[str, Any]) -> Artefact:
    """What the registry itself needs of a converter's manifest.

    Raises:
        ExportFailed: it is not there.
    """
    try:
        return msgspec.convert(manifest, Artefact)
    except msgspec.ValidationError as error:
        raise ExportFailed(f"The converter's manifest cannot be read: {error}.") from error


def _engine_options(choice: EngineChoice | None) -> list[str]:
    """What the converter is asked for, where anybody said something."""
    if choice is None:
        return []
    options = [] if choice.required else ["--or-best"]
    for name, value in (("--engine", choice.engine), ("--precision", choice.precision)):
        options += [name, value] if value is not None else []
    return options


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()
