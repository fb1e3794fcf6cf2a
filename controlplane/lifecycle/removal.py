"""Taking a model away: out of memory, out of the registry, off the disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controlplane.errors import InvalidStateTransition, ModelAlreadyLoaded, ModelNotLoaded
from controlplane.lifecycle.state import HOLDING_MEMORY

if TYPE_CHECKING:
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.install import Installer
    from controlplane.registry.store import ModelStore


_LOOK_AGAIN_SECONDS = 0.05


async def remove_model(
    store: ModelStore,
    installer: Installer,
    scheduler: Scheduler,
    name: str,
    *,
    force: bool,
    expected_version: int | None = None,
) -> None:
    """Uninstall a model; `force` unloads it first, and does not mind locks.

    Args:
        expected_version: the model's lock as the caller last saw it; None does not care.

    Raises:
        ModelNotFound: it is not registered.
        ConcurrentModification: it is no longer at `expected_version`.
        ModelLocked: an active lock holds it and `force` is not set.
        ModelAlreadyLoaded: it is in memory and `force` is not set.
        InvalidStateTransition: it is just being loaded.
    """
    model_id = store.get(name).model_id
    if not force:
        store.check_unlocked(model_id)
    shown = scheduler.view(model_id)
    if shown is not None and shown.state in HOLDING_MEMORY:
        if not force:
            raise ModelAlreadyLoaded(model_id, "is loaded; unload it first, or use force")
        await scheduler.unload(model_id)
    await installer.uninstall(model_id, force=force, expected_version=expected_version)
    await leave_memory(scheduler, model_id)


async def leave_memory(
    scheduler: Scheduler, model_id: str, *, triton_version: int | None = None
) -> None:
    """Take out of memory what is no longer in the registry.

    A request that had looked it up before may just be loading it. That ends, mostly because the
    files are gone, and nobody finds the model any more.

    Raises:
        ServiceUnavailable: Triton did not unload it.
    """
    while True:
        try:
            await scheduler.unload(model_id, triton_version=triton_version)
        except ModelNotLoaded:
            scheduler.forget(model_id, triton_version)
            return
        except InvalidStateTransition:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
