"""Warming a model up: load it where needed, and run test inferences on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from controlplane.errors import InferenceFailed, ValidationFailed
from controlplane.triton.failures import TritonError

if TYPE_CHECKING:
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable

MOST_SAMPLES = 1000


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """What it took; `times_ms` in the order of the inferences, `wait_seconds` until it served."""

    model_id: str
    version: str
    wait_seconds: float
    times_ms: tuple[float, ...]


async def warm_up(
    scheduler: Scheduler, servable: Servable, *, samples: int, deadline: float
) -> WarmUp:
    """Load a model if need be, then run `samples` test inferences one after the other.

    Args:
        samples: 1 to 1000.
        deadline: on the event loop's clock, for getting it into memory.

    Raises:
        ValidationFailed: naming `samples`.
        InferenceFailed: a test inference was not answered well.
        and what `Scheduler.lease` raises.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise ValidationFailed.field("samples", f"must be 1 to {MOST_SAMPLES}")
    clock = asyncio.get_running_loop().time
    began = clock()
    async with scheduler.lease(servable, deadline=deadline) as leased:
        waited = clock() - began
        try:
            times = [await scheduler.probe(leased) for _ in range(samples)]
        except TritonError as error:
            raise InferenceFailed(leased.model_id, str(error)) from error
    return WarmUp(
        model_id=leased.model_id,
        version=leased.version,
        wait_seconds=waited,
        times_ms=tuple(times),
    )
