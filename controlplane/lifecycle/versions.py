"""Switching the version that a model serves by default, and taking versions away."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from controlplane.errors import (
    CurrentVersionProtected,
    InvalidStateTransition,
    ModelAlreadyLoaded,
    ModelNotLoaded,
    VersionNotFound,
)
from controlplane.lifecycle.removal import leave_memory
from controlplane.lifecycle.switch import SwitchMode
from controlplane.registry.catalog import pick
from controlplane.registry.model import LATEST, VersionStatus

if TYPE_CHECKING:
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.install import Installer
    from controlplane.registry.model import ModelVersion
    from controlplane.registry.store import ModelStore


class Switched(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of a switch; `previous_version` equals `version` when nothing had to be done."""

    model_id: str
    version: str
    previous_version: str
    mode: SwitchMode


async def use_version(
    store: ModelStore, scheduler: Scheduler, name: str, version: str, *, load_timeout: float
) -> Switched:
    """Serve an installed version by default from now on; no request is lost on the way.

    Args:
        version: its string or Triton number, or `latest`.
        load_timeout: seconds that the load of the new version may take.

    Raises:
        InvalidModelId, ModelNotFound, VersionNotFound, ModelNotReady.
        InsufficientMemory, LoadFailed, LoadTimeout, ServiceUnavailable: the new version could not
            be loaded; the old one serves as before.
    """
    model = store.get(name)
    new = store.servable(model.model_id, pick(model, version).version)
    previous = model.current
    if previous.version == new.version or previous.status is not VersionStatus.READY:
        store.set_current(model.model_id, new.version)
        mode = SwitchMode.UNLOADED
    else:
        mode = await scheduler.switch(
            lambda: store.servable(model.model_id, None),
            new,
            deadline=asyncio.get_running_loop().time() + load_timeout,
            commit=lambda: store.set_current(model.model_id, new.version),
        )
    return Switched(
        model_id=model.model_id,
        version=new.version,
        previous_version=previous.version,
        mode=mode,
    )


async def reload_version(
    store: ModelStore, scheduler: Scheduler, version: ModelVersion, *, load_timeout: float
) -> None:
    """Have a version whose files changed served from the new ones; nothing if it is not in memory.

    Running requests end on the old ones, new requests wait for the load.

    Raises:
        InsufficientMemory, LoadFailed, LoadTimeout, ServiceUnavailable: it could not be loaded;
            the next request tries again.
    """
    servable = store.servable(version.model_id, version.version)
    deadline = asyncio.get_running_loop().time() + load_timeout
    try:
        await scheduler.unload(
            version.model_id, triton_version=version.triton_version, reason="tuned"
        )
    except ModelNotLoaded:
        return
    except InvalidStateTransition:  # which files it reads just now, nobody knows
        async with scheduler.lease(servable, deadline=deadline):
            pass
        await reload_version(store, scheduler, version, load_timeout=load_timeout)
        return
    with contextlib.suppress(ModelAlreadyLoaded):  # a request was faster
        await scheduler.load(servable, deadline=deadline)


async def remove_version(
    store: ModelStore, installer: Installer, scheduler: Scheduler, name: str, version: str
) -> None:
    """Remove a version with its files; one that is in memory is drained and unloaded first.

    Requests that run on it end well; later ones that name it fail with VersionNotFound.

    Raises:
        InvalidModelId, ModelNotFound, VersionNotFound.
        CurrentVersionProtected: it is the current one.
        ModelLocked: an active lock holds it.
        InvalidStateTransition: it is just being loaded.
    """
    model = store.get(name)
    if version == LATEST:  # nobody should delete what they have not named
        raise VersionNotFound(model.model_id, version)
    gone = pick(model, version)
    if gone.version == model.current_version:
        raise CurrentVersionProtected(model.model_id, gone.version)
    store.check_unlocked(model.model_id, gone)
    number = gone.triton_version
    with contextlib.suppress(ModelNotLoaded):
        await scheduler.unload(model.model_id, triton_version=number)
    await installer.uninstall_version(model.model_id, gone.version)
    await leave_memory(scheduler, model.model_id, triton_version=number)
