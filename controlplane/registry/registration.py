"""Registering a model: what its registration leaves open is read from its own files first.

Task first of all: it decides how a model is converted and cannot change later. A registration that
names the task asks nobody; one that does not looks at the source (`looking.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import (
    DownloadFailed,
    ModelAlreadyExists,
    ModelNotFound,
    ValidationFailed,
)
from controlplane.registry.curated import curated_facts
from controlplane.registry.facts import FACTS, Facts, merged, to_metadata
from controlplane.registry.looking import Look, look
from controlplane.registry.model import ModelId, TaskType, check_new_model
from controlplane.registry.patience import HubLimits
from controlplane.registry.remote_code import check_permitted

if TYPE_CHECKING:
    from controlplane.registry.installation import Workshop
    from controlplane.registry.model import Model, NewModel

# Somebody waits for the answer: less patience than a download has.
LIMITS = HubLimits(answer=10.0, resolve=20.0, attempts=3)
# How long a request is held for an archive that is still coming, in seconds.
PATIENCE = 5.0
_ANY_TASK = "txt2embed"  # for checking the rest of a registration before asking the hub


async def register(
    shop: Workshop, new: NewModel, *, limits: HubLimits = LIMITS, patience: float | None = None
) -> Model:
    """Add a model with its first version; its task is found out when it is not given.

    Args:
        patience: seconds to wait for an archive that has to be read; None waits to its end.

    Raises:
        SourceBeingRead: it is not here yet; ask again.
        ValidationFailed: the registration breaks a rule, or the task cannot be told.
        InvalidTaskType: the task, given or found, has no converter (yet).
        InvalidModelId, ModelAlreadyExists.
        RemoteCodeRefused: it trusts code and the server does not, or brings code untrusted.
        SourceRefused, ArtifactNotAccessible, DownloadFailed, UnsafeWeights, InsufficientDisk: the
            files that would tell cannot be had.
        TritonModelInvalid: it is a ready-made Triton model, and wrong.
        SettingsError: the user's curated list is wrong.
    """
    model_id = ModelId.parse(new.model_id)
    allowed = shop.settings.allow_remote_code
    check_permitted(str(model_id), trusted=new.trust_remote_code, allowed=allowed)
    explicit = _explicit(new)
    _check_custom(new)
    if new.task_type is not None:
        # the version's files tell the rest when they come
        return shop.store.register(_described(new, merged({}, {}, explicit)))
    check_new_model(msgspec.structs.replace(new, task_type=_ANY_TASK))
    _refuse_known(shop, model_id)
    curated = curated_facts(model_id, shop.settings.data_dir)
    found = await _look(shop, model_id, new, limits, patience, known="task_type" in curated)
    try:
        return _enter(shop, new, merged(found.facts, curated, explicit), found)
    finally:
        found.discard()


def _enter(shop: Workshop, new: NewModel, facts: Facts, found: Look) -> Model:
    """Enter the model, and let its version have what was downloaded to find out about it."""
    if "task_type" not in facts:
        raise ValidationFailed.field(
            "task_type",
            f"cannot be told from the files of {new.model_id}: no modules.json, no known "
            "pipeline_tag in its model card, no known architecture in its config.json. "
            "Name it (--task)",
        )
    known: dict[str, Any] = {"task_type": str(facts["task_type"].value)}
    if found.source is not None:  # these bytes were looked at, so these are what it stands for
        known["checksum"] = found.source.checksum
        known["artifact_uri"] = found.source.artifact_uri
    model = shop.store.register(_described(msgspec.structs.replace(new, **known), facts))
    if found.folder is not None:
        home = shop.downloads / model.current.triton_name
        home.mkdir(parents=True, exist_ok=True)
        found.folder.rename(home / str(model.current.triton_version))
    return model


async def _look(
    shop: Workshop,
    model_id: ModelId,
    new: NewModel,
    limits: HubLimits,
    patience: float | None,
    *,
    known: bool,
) -> Look:
    try:
        return await look(shop, model_id, new, limits, patience)
    except DownloadFailed:
        if known:  # the curated list will do; the download says what is wrong with the source
            return Look(facts={})
        raise


def _check_custom(new: NewModel) -> None:
    custom = new.task_type is not None and TaskType.parse(new.task_type) is TaskType.CUSTOM
    if custom and new.source_url is None:
        raise ValidationFailed.field(
            "source_url", "is required for custom, the task of ready-made Triton models"
        )


def _refuse_known(shop: Workshop, model_id: ModelId) -> None:
    """Before the hub is asked for nothing."""
    try:
        shop.store.get(str(model_id))
    except ModelNotFound:
        return
    raise ModelAlreadyExists(str(model_id))


def _described(new: NewModel, facts: Facts) -> NewModel:
    known = {FACTS: to_metadata(facts)} if facts else {}
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
