"""Brings Triton to what we know: at start nothing of ours is to be in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from controlplane.triton.failures import TritonError

if TYPE_CHECKING:
    from controlplane.triton.client import TritonClient

log = structlog.get_logger(__name__)


async def unload_strays(client: TritonClient, known: set[str]) -> list[str]:
    """Unload models of ours that an external Triton still holds from before.

    Loaded by somebody else, their memory is not in our ledger; a clean start is certain.

    Args:
        known: Triton names of registered models; others are left alone.

    Returns:
        The names that were unloaded.
    """
    held = {entry.name for entry in await client.index() if entry.state == "READY"}
    unloaded = []
    for name in sorted(held & known):
        try:
            await client.unload(name, timeout=60.0)
        except TritonError as error:
            log.warning(
                "a model held by Triton could not be unloaded", model=name, reason=str(error)
            )
        else:
            log.info("unloaded a model that Triton held from before", model=name)
            unloaded.append(name)
    return unloaded
