"""At start, after a crash at any line: make rows and folders agree again.

Rows are the truth: a folder that no row accounts for is removed, a row whose folder is gone says
so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from controlplane.errors import InvalidModelId
from controlplane.registry.disk import remove_tree
from controlplane.registry.model import ModelId, ModelVersion, VersionStatus

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.repository import ModelRepository
    from controlplane.registry.store import ModelStore

log = structlog.get_logger(__name__)

MISSING = "Its files are missing from the model repository; install again."


def recover(store: ModelStore, repository: ModelRepository, downloads: Path) -> None:
    """Clean up; nothing else may use the registry yet.

    Args:
        downloads: folder of `{triton_name}/{triton_version}` folders.
    """
    interrupted = store.recover_interrupted()
    if interrupted:
        log.warning("installations had been interrupted", model_ids=interrupted)
    repository.sweep()
    for version in store.every_version():
        _compare(store, version, whole=_is_whole(repository, version))
    rows = {(v.triton_name, v.triton_version): v for v in store.every_version()}
    ready = {key for key, v in rows.items() if v.status is VersionStatus.READY}
    _sweep_repository(repository, ready)
    _sweep_downloads(downloads, {(name, str(number)) for name, number in rows})


def _compare(store: ModelStore, version: ModelVersion, *, whole: bool) -> None:
    if version.status is VersionStatus.READY and not whole:
        log.error("artefact is missing", model_id=version.model_id, version=version.version)
        store.set_status(version.model_id, version.version, VersionStatus.FAILED, MISSING)
    elif version.status is VersionStatus.FAILED and version.artefact is not None and whole:
        # It was missing at an earlier start: a volume not mounted, another folder by mistake.
        log.info("artefact is there again", model_id=version.model_id, version=version.version)
        store.set_status(version.model_id, version.version, VersionStatus.READY)


def _is_whole(repository: ModelRepository, version: ModelVersion) -> bool:
    """True when the recorded artefact is there, every file with its size."""
    folder = repository.root / version.triton_name / str(version.triton_version)
    files = (version.artefact or {}).get("files", [])
    try:
        repository.load_config(version.triton_name, version.triton_version)
        if repository.manifest(version.triton_name, version.triton_version) != version.artefact:
            return False
        sizes = {entry["path"]: entry["size"] for entry in files}
        return all((folder / path).stat().st_size == size for path, size in sizes.items())
    except (OSError, ValueError):
        return False


def _sweep_repository(repository: ModelRepository, ready: set[tuple[str, int]]) -> None:
    if not repository.root.is_dir():
        return
    for home in sorted(repository.root.glob("*--*")):
        for number in repository.versions(home.name):
            if (home.name, number) in ready:
                continue
            try:
                model_id = ModelId.from_any_spelling(home.name)
                ours = repository.manifest(home.name, number)["model_id"] == str(model_id)
            except (InvalidModelId, OSError, ValueError, KeyError):
                ours = False
            if ours:  # else it is somebody's own Triton model
                log.info("removing orphan artefact", name=home.name, number=number)
                repository.remove_version(model_id, number)


def _sweep_downloads(downloads: Path, known: set[tuple[str, str]]) -> None:
    if not downloads.is_dir():
        return
    for home in sorted(downloads.iterdir()):
        if not home.is_dir():
            continue
        for folder in sorted(home.iterdir()):
            if (home.name, folder.name) not in known:
                log.info("removing orphan download", path=str(folder))
                remove_tree(folder)
        if not any(home.iterdir()):
            home.rmdir()
