"""A look at a model before it is registered: what do its own files tell?

The hub and a prefix on S3 are asked for a handful of small files, a directory is read where it is.
An archive can only be read whole, so it is downloaded: into the cache, and into a folder that the
new version then takes over, so that its installation downloads nothing again.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from controlplane.errors import ArtifactNotAccessible, DownloadFailed
from controlplane.registry import metadata, ready_source
from controlplane.registry.disk import remove_tree
from controlplane.registry.facts import Facts
from controlplane.registry.files import MODULES, FetchedSource
from controlplane.registry.local import directory_of
from controlplane.registry.metadata import CONFIG, LARGEST_SMALL_FILE, SMALL_FILES
from controlplane.registry.ready_models import CONFIG as TRITON_CONFIG
from controlplane.registry.ready_models import is_ready_made
from controlplane.registry.remote_code import refuse_untrusted
from controlplane.registry.selection_diffusers import MODEL_INDEX
from controlplane.registry.source_url import parse_source_url
from controlplane.registry.sources import fetch, peek, rules_of
from controlplane.registry.waiting import to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlplane.registry.files import Progress
    from controlplane.registry.installation import Workshop
    from controlplane.registry.model import ModelId, NewModel
    from controlplane.registry.patience import HubLimits

_FOLDER = ".registration"  # in the folder of downloads; no model's name begins with a dot


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's files tell.

    Attributes:
        source: the files themselves, where they had to be downloaded, in `folder`.
    """

    facts: Facts
    source: FetchedSource | None = None
    folder: Path | None = None

    def discard(self) -> None:
        """Remove the folder; what the cache has of it stays."""
        if self.folder is not None:
            remove_tree(self.folder)


async def look(
    shop: Workshop,
    model_id: ModelId,
    new: NewModel,
    limits: HubLimits,
    patience: float | None = None,
) -> Look:
    """Find out what a model's files tell.

    Args:
        patience: seconds to wait for an archive; None waits until it is here.

    Raises:
        SourceBeingRead: the archive is not here yet; its download goes on.
        ArtifactNotAccessible, DownloadFailed, InsufficientDisk, UnsafeWeights: as a download.
        TritonModelInvalid: it is a ready-made Triton model, and wrong.
        SourceRefused: a rule of safety forbids it; it brings code that is not trusted.
        ValidationFailed: the source's address is wrong.
    """
    url = new.source_url and parse_source_url(new.source_url)
    kind = "hub" if not url or isinstance(url, str) else url.kind
    if kind == "directory":
        return await asyncio.to_thread(_look_into, directory_of(new.source_url or ""), new)
    if kind.endswith("archive"):
        key = (str(model_id), new.version, new.source_url, new.checksum, new.trust_remote_code)
        begin = partial(_look_into_archive, shop, model_id, new)
        return await shop.looks.outcome(key, str(model_id), begin, patience)
    return await asyncio.to_thread(_look_from_afar, model_id, new, limits)


def _refuse_empty(where: str, names: Iterable[str]) -> None:
    """What is no model at all is not for `--task` to put right."""
    if not {CONFIG, MODULES, MODEL_INDEX} & set(names):
        raise ArtifactNotAccessible(
            f"{where} has no config.json, so it is not a transformers or sentence-transformers "
            "model; nor has it the config.pbtxt of a ready-made Triton model."
        )


def _look_into(folder: Path, new: NewModel) -> Look:
    if not folder.is_dir():
        raise ArtifactNotAccessible(f"{folder} is not a directory on the server's machine.")
    try:
        if ready_source.is_ready_folder(folder):
            ready_source.examine(folder.resolve(), new.version)
            return Look(facts=metadata.ready_made_facts())
    except OSError as error:
        raise ArtifactNotAccessible(f"{folder} cannot be read: {error}.") from error
    _refuse_empty(str(folder), [path.name for path in folder.iterdir()])
    config = folder / CONFIG
    if config.is_file():
        content = config.read_bytes()
        refuse_untrusted(content, CONFIG, str(folder), trusted=new.trust_remote_code)
    return Look(facts=metadata.read_folder(folder))


def _look_from_afar(model_id: ModelId, new: NewModel, limits: HubLimits) -> Look:
    where = new.source_url or str(model_id)
    ask = partial(
        peek, model_id, new.version, new.source_url, largest=LARGEST_SMALL_FILE, limits=limits
    )
    files = ask((*SMALL_FILES, TRITON_CONFIG))
    if new.source_url is not None and is_ready_made(files):
        return Look(facts=metadata.ready_made_facts())
    _refuse_empty(where, files)
    refuse_untrusted(files.get(CONFIG, b""), CONFIG, where, trusted=new.trust_remote_code)
    more = metadata.module_configs(files.get(MODULES))
    if more:
        files |= ask(more)
    return Look(facts=metadata.read_facts(files.get))


async def _look_into_archive(
    shop: Workshop, model_id: ModelId, new: NewModel, report: Callable[[Progress], None]
) -> Look:
    folder, cancelled = shop.downloads / _FOLDER / uuid4().hex, threading.Event()
    call = partial(
        fetch,
        model_id,
        new.version,
        new.source_url,
        folder,
        cache=shop.cache,
        rules=msgspec.structs.replace(rules_of(shop.settings), trust_code=new.trust_remote_code),
        progress=report,
        cancelled=cancelled,
        checksum=new.checksum,
        limits=shop.limits,
    )
    timeout = shop.settings.install_timeout
    async with shop.downloading:
        work = asyncio.get_running_loop().run_in_executor(shop.threads, call)
        try:
            source = await asyncio.wait_for(to_its_end(work, cancelled.set), timeout)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise DownloadFailed(
                f"The download took longer than {timeout:g} s (MODELMORA_INSTALL_TIMEOUT)."
            ) from error
        except BaseException:
            remove_tree(folder)  # whole, but not the bytes that are pinned
            raise
    reading = asyncio.ensure_future(asyncio.to_thread(metadata.read_folder, folder))
    try:
        facts = await to_its_end(reading)
    except BaseException:  # given up just now: nobody else would remove it
        remove_tree(folder)
        raise
    return Look(facts=facts, source=source, folder=folder)
