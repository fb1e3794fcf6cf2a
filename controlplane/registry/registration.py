"""Registering a model: what its registration leaves open is read from its own small files first.

Task first of all: it decides how a model is converted and cannot change later. A registration that
names the task asks nobody; one that does not reads a directory at once, or a handful of small files
of the hub.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import (
    ArtifactNotAccessible,
    DownloadFailed,
    ModelAlreadyExists,
    ModelNotFound,
    ValidationFailed,
)
from controlplane.registry import metadata, ready_source
from controlplane.registry.curated import curated_facts
from controlplane.registry.files import MODULES
from controlplane.registry.local import directory_of
from controlplane.registry.metadata import CONFIG, FACTS, LARGEST_SMALL_FILE, SMALL_FILES, Facts
from controlplane.registry.model import ModelId, TaskType, check_new_model
from controlplane.registry.patience import HubLimits
from controlplane.registry.sources import peek

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from controlplane.registry.model import Model, NewModel
    from controlplane.registry.store import ModelStore

# Somebody waits for the answer: less patience than a download has.
LIMITS = HubLimits(answer=10.0, resolve=20.0, attempts=3)
_ANY_TASK = "txt2embed"  # for checking the rest of a registration before asking the hub


async def register(
    store: ModelStore, new: NewModel, data_dir: Path, *, limits: HubLimits = LIMITS
) -> Model:
    """Add a model with its first version; its task is found out when it is not given.

    Raises:
        ValidationFailed: the registration breaks a rule, or the task cannot be told.
        InvalidTaskType: the task, given or found, has no converter (yet).
        InvalidModelId, ModelAlreadyExists.
        ArtifactNotAccessible, DownloadFailed: the files that would tell cannot be had.
        TritonModelInvalid: it is the folder of a ready-made Triton model, and wrong.
        SettingsError: the user's curated list is wrong.
    """
    model_id = ModelId.parse(new.model_id)
    explicit = _explicit(new)
    _check_custom(new)
    if new.task_type is not None:
        # the version's files tell the rest when they come
        return store.register(_described(new, metadata.merged({}, {}, explicit)))
    check_new_model(msgspec.structs.replace(new, task_type=_ANY_TASK))
    _refuse_known(store, model_id)
    curated = curated_facts(model_id, data_dir)
    files = await _files_facts(model_id, new, limits, known="task_type" in curated)
    facts = metadata.merged(files, curated, explicit)
    if "task_type" not in facts:
        raise ValidationFailed.field(
            "task_type",
            f"cannot be told from the files of {model_id}: no modules.json, no known pipeline_tag "
            "in its model card, no known architecture in its config.json. Name it (--task)",
        )
    task = str(facts["task_type"].value)
    return store.register(_described(msgspec.structs.replace(new, task_type=task), facts))


def _check_custom(new: NewModel) -> None:
    custom = new.task_type is not None and TaskType.parse(new.task_type) is TaskType.CUSTOM
    if custom and new.source_url is None:
        raise ValidationFailed.field(
            "source_url", "is required for custom, the task of ready-made Triton models"
        )


def _refuse_known(store: ModelStore, model_id: ModelId) -> None:
    """Before the hub is asked for nothing."""
    try:
        store.get(str(model_id))
    except ModelNotFound:
        return
    raise ModelAlreadyExists(str(model_id))


def _refuse_empty(where: str, names: Iterable[str]) -> None:
    """What is no model at all is not for `--task` to put right."""
    if not {CONFIG, MODULES} & set(names):
        raise ArtifactNotAccessible(
            f"{where} has no config.json, so it is not a transformers or sentence-transformers "
            "model; nor has it the config.pbtxt of a ready-made Triton model."
        )


def _described(new: NewModel, facts: Facts) -> NewModel:
    known = {FACTS: metadata.to_metadata(facts)} if facts else {}
    return msgspec.structs.replace(new, metadata={**new.metadata, **known})


def _explicit(new: NewModel) -> dict[str, Any]:
    """What the user said about the model itself (domain §2.11 for the keys of `config`)."""
    needs = new.resource_requirements
    return {
        "task_type": new.task_type,
        "vector_size": new.config.get("vector_size"),
        "max_length": new.config.get("max_length"),
        "memory_mb": None if needs is None else needs.memory_mb,
    }


async def _files_facts(
    model_id: ModelId, new: NewModel, limits: HubLimits, *, known: bool
) -> Facts:
    if new.source_url is not None:
        folder = directory_of(new.source_url)
        if not folder.is_dir():
            raise ArtifactNotAccessible(f"{folder} is not a directory on the server's machine.")
        if ready_source.is_ready_folder(folder):
            await asyncio.to_thread(ready_source.examine, folder.resolve(), new.version)
            return await asyncio.to_thread(metadata.read_folder, folder)
        _refuse_empty(str(folder), [path.name for path in folder.iterdir()])
        return await asyncio.to_thread(metadata.read_folder, folder)
    try:
        return await asyncio.to_thread(_hub_facts, model_id, new.version, limits)
    except DownloadFailed:
        if known:  # the curated list will do; the download says what is wrong with the hub
            return {}
        raise


def _hub_facts(model_id: ModelId, version: str, limits: HubLimits) -> Facts:
    look = partial(peek, model_id, version, largest=LARGEST_SMALL_FILE, limits=limits)
    files = look(SMALL_FILES)
    _refuse_empty(str(model_id), files)
    more = metadata.module_configs(files.get(MODULES))
    if more:
        files |= look(more)
    return metadata.read_facts(files.get)
