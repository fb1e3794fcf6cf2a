"""Triton's model repository extension through our lifecycle: index, load and unload.

Both transports call these functions. A load or an unload is the scheduler's business, with its
budget and its waiters; the private server is never asked.
Protocol: Triton's `extension_model_repository.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import (
    InvalidInput,
    InvalidModelId,
    InvalidStateTransition,
    ModelAlreadyLoaded,
    ModelMoraError,
    ModelNotFound,
    ModelNotLoaded,
)
from controlplane.gateway import v2
from controlplane.gateway.errors import NotOffered
from controlplane.lifecycle.scheduler import DEFAULT_PRIORITY
from controlplane.lifecycle.state import ModelState
from controlplane.registry.model import VersionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlplane.gateway.services import Services
    from controlplane.lifecycle.resident import ResidentView
    from controlplane.registry.model import Servable

READY = "READY"
_STATES = {
    ModelState.LOADED: READY,
    ModelState.LOADING: "LOADING",
    ModelState.UNLOADING: "UNLOADING",
}
_UNAVAILABLE = "UNAVAILABLE"


class IndexEntry(msgspec.Struct, frozen=True):
    """One line of the index, named as Triton names it; `reason` is empty for a loaded version."""

    name: str
    version: str
    state: str
    reason: str


def index(services: Services, *, ready: bool = False) -> list[IndexEntry]:
    """Every installed version with its state in memory, by model id and number.

    Args:
        ready: only those that are loaded.
    """
    in_memory = {(v.triton_name, v.triton_version): v for v in services.scheduler.loaded()}
    entries = [
        _entry(version.triton_name, version.triton_version, in_memory)
        for model in services.store.every_model()
        for version in sorted(model.versions, key=lambda v: v.triton_version)
        if version.status is VersionStatus.READY
    ]
    return [entry for entry in entries if not ready or entry.state == READY]


def _entry(name: str, number: int, in_memory: Mapping[tuple[str, int], ResidentView]) -> IndexEntry:
    view = in_memory.get((name, number))
    if view is None:
        return IndexEntry(name, str(number), _UNAVAILABLE, "unloaded")
    state = _STATES.get(view.state, _UNAVAILABLE)
    reason = "" if state == READY else view.health_error or str(view.state)
    return IndexEntry(name, str(number), state, reason)


async def load(services: Services, name: str, parameters: Mapping[str, Any]) -> None:
    """Load the current version of a model and return when it is loaded, or was already.

    Raises:
        NotOffered: `parameters` carry a configuration or files.
        InvalidInput: `parameters` carry something else.
        InvalidModelId, ModelNotFound, ModelNotReady: there is nothing to load.
        and what `Scheduler.lease` raises.
    """
    _check_load(parameters)
    servable = v2.resolve(services, name, None)
    deadline = asyncio.get_running_loop().time() + services.settings.load_timeout
    try:
        await services.scheduler.load(servable, deadline=deadline)
    except ModelAlreadyLoaded:  # or being loaded, or being healed
        await _wait_until_loaded(services, servable, deadline)


async def unload(services: Services, name: str, parameters: Mapping[str, Any]) -> None:
    """Drain and unload every version of a model; success also when there was nothing to unload.

    Args:
        parameters: `unload_dependents` is accepted: no model of ours has any.

    Raises:
        InvalidInput: `parameters` carry something else.
        ServiceUnavailable: Triton did not unload it.
    """
    for key, value in parameters.items():
        if key != "unload_dependents" or not isinstance(value, bool):
            raise InvalidInput(
                f"Unload parameter {key!r} is not known; there is only unload_dependents, a bool.",
                field=f"parameters.{key}",
            )
    # As Triton does: what is not there counts as unloaded.
    with contextlib.suppress(ModelNotLoaded, ModelNotFound, InvalidModelId):
        model_id = services.store.get(name).model_id
        try:
            await services.scheduler.unload(model_id)
        except InvalidStateTransition:  # Triton lets a load end before it unloads
            await _wait_for_load_to_end(services, model_id)
            await services.scheduler.unload(model_id)


async def _wait_for_load_to_end(services: Services, model_id: str) -> None:
    deadline = asyncio.get_running_loop().time() + services.settings.load_timeout
    for view in services.scheduler.loaded():
        if view.model_id == model_id and view.state is ModelState.LOADING:
            with contextlib.suppress(ModelMoraError):  # a load that fails has ended too
                servable = services.store.servable(model_id, str(view.triton_version))
                await _wait_until_loaded(services, servable, deadline)


async def _wait_until_loaded(services: Services, servable: Servable, deadline: float) -> None:
    # Not a lease: that would also wait for its turn among the model's running requests.
    scheduler = services.scheduler
    resident = scheduler.try_acquire(servable)
    if resident is None:
        resident = await scheduler.wait_until_loaded(servable, deadline, DEFAULT_PRIORITY)
    scheduler.release(resident)


def _check_load(parameters: Mapping[str, Any]) -> None:
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            raise NotOffered(
                f"Load parameter {key!r} is refused: whoever may choose a model's configuration or "
                "files runs code on the server. Install the model instead: modelmora install."
            )
        raise InvalidInput(
            f"Load parameter {key!r} is not known; a load takes none.", field=f"parameters.{key}"
        )
