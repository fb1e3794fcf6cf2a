"""At start, after a crash at any line: make rows and folders agree again.

Rows are the truth: a folder that no row accounts for is removed, a row whose folder is gone says
so.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from controlplane.errors import InvalidModelId
from controlplane.registry.blobs import BlobCache
from controlplane.registry.model import ModelId, VersionStatus

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.catalog import ArtefactRecord
    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore

log = structlog.get_logger(__name__)

MISSING = "Its files are missing from the model repository; install again."


# Coarse clocks of file systems, and what was written while we looked.
_SLACK_NS = 2 * 10**9


def recover(store: ModelStore, repository: ModelRepository, downloads: Path) -> None:
    """Clean up; nothing else may use the registry yet.

    Sizes of all files are compared at every start. Manifests and configurations are read again
    only where something was touched since the last start: with ten thousand models that is the
    difference between one second and half a minute.

    Args:
        downloads: folder of `{triton_name}/{triton_version}` folders.
    """
    interrupted = store.recover_interrupted()
    if interrupted:
        log.warning("installations had been interrupted", model_ids=interrupted)
    began, record = time.time_ns(), downloads.with_name("recovered.json")
    known = _read_record(record, repository)
    repository.sweep(known.until_ns)
    for found in store.artefact_records():
        _compare(store, found, whole=_is_whole(store, repository, found, known.until_ns))
    keys = store.version_keys()
    ready = {(name, number) for name, number, status in keys if status is VersionStatus.READY}
    _sweep_repository(repository, ready, known)
    _sweep_downloads(downloads, {(name, str(number)) for name, number, _ in keys})
    if ready:  # else the next start has nothing to read, known or not
        _write_record(record, _Known(str(repository.root), began - _SLACK_NS, ready))


class _Known(msgspec.Struct, frozen=True):
    """What the last start saw.

    Attributes:
        root: of the model repository.
        until_ns: until when it looked (Unix); 0 when it never did.
        ready: Triton name and number of the versions whose folders belong there.
    """

    root: str
    until_ns: int = 0
    ready: set[tuple[str, int]] = msgspec.field(default_factory=set)


def _read_record(record: Path, repository: ModelRepository) -> _Known:
    try:
        known = msgspec.json.decode(record.read_bytes(), type=_Known)
    except (OSError, msgspec.MsgspecError):
        known = _Known("")
    return known if known.root == str(repository.root) else _Known(str(repository.root))


def _write_record(record: Path, known: _Known) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(msgspec.json.encode(known))
    except OSError as error:  # then everything is read again next time
        log.warning("the record of the start cannot be written", error=str(error))


def _compare(store: ModelStore, version: ArtefactRecord, *, whole: bool) -> None:
    if version.status is VersionStatus.READY and not whole:
        log.error("artefact is missing", model_id=version.model_id, version=version.version)
        store.set_status(version.model_id, version.version, VersionStatus.FAILED, MISSING)
    elif version.status is VersionStatus.FAILED and whole:
        # It was missing at an earlier start: a volume not mounted, another folder by mistake.
        log.info("artefact is there again", model_id=version.model_id, version=version.version)
        store.set_status(version.model_id, version.version, VersionStatus.READY)


def _is_whole(
    store: ModelStore, repository: ModelRepository, version: ArtefactRecord, known_until: int
) -> bool:
    """True when the recorded artefact is there, every file with its size."""
    name, number = version.triton_name, version.triton_version
    folder = f"{repository.root}/{name}/{number}"
    try:
        touched = repository.changed_since(known_until, name, number)
        if touched or version.updated_at.timestamp() * 10**9 >= known_until:
            repository.load_config(name, number)
            on_record = store.version(version.model_id, version.version).artefact
            if repository.manifest(name, number) != on_record:
                return False
        return all(os.stat(f"{folder}/{file.path}").st_size == file.size for file in version.files)  # noqa: PTH116
    except (OSError, ValueError):
        return False


def _sweep_repository(
    repository: ModelRepository, ready: set[tuple[str, int]], known: _Known
) -> None:
    """Remove version folders that no row accounts for.

    A model's folder that nobody touched has the versions it had when the last start swept it: it
    need not be listed unless other ones are ready now. That spares ten thousand listings.
    """
    changed = {name for name, _ in ready ^ known.ready}
    for name, touched in sorted(repository.homes().items()):
        if touched < known.until_ns and name not in changed:
            continue
        for number in repository.versions(name):
            if (name, number) in ready:
                continue
            try:
                model_id = ModelId.from_any_spelling(name)
                ours = repository.manifest(name, number)["model_id"] == str(model_id)
            except (InvalidModelId, OSError, ValueError, KeyError):
                ours = False
            if ours:  # else it is somebody's own Triton model
                log.info("removing orphan artefact", name=name, number=number)
                repository.remove_version(model_id, number)


def _sweep_downloads(downloads: Path, known: set[tuple[str, str]]) -> None:
    if not downloads.is_dir():
        return
    cache = BlobCache(downloads.with_name("cache"), downloads)
    for home in sorted(downloads.iterdir()):
        if not home.is_dir():
            continue
        for folder in sorted(home.iterdir()):
            if (home.name, folder.name) not in known:
                log.info("removing orphan download", path=str(folder))
                cache.remove_download(folder, owner="")
        if not any(home.iterdir()):
            home.rmdir()
