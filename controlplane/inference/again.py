"""A request whose process or server died before it was answered is run once more.

The rule for requests that are run from here; the gateway (`gateway/v2.py`) has one like it for
answers in bytes. Nothing of an answer has been passed on when it applies, so nobody can tell but by
the time.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, TypeVar

import structlog

from controlplane.errors import ModelMoraError
from controlplane.lifecycle.state import ModelState
from controlplane.triton.failures import (
    ModelFailed,
    ModelUnknown,
    QueueFull,
    StubUnhealthy,
    TritonUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

# How long a death that a request has met may take to be seen by those who watch, in seconds.
NOTICE_SECONDS = 5.0
_NOTICE_POLL = 0.02
_RESTARTED = re.compile(r"is unhealthy and it will be restarted", re.IGNORECASE)
_T = TypeVar("_T")


async def leased_once_more(
    scheduler: Scheduler,
    servable: Servable,
    run: Callable[[Servable], Awaitable[_T]],
    *,
    deadline: float,
    priority: int,
) -> _T:
    """Lease the model and run the request; once more when its process died under it.

    The second lease waits until the model is well again, within the same deadline.

    Args:
        run: of the servable that was leased; its errors have Triton's as their cause.
        deadline: on the event loop's clock.

    Raises:
        what `run` raises, the second time if there is one, and what `Scheduler.lease` raises.
    """
    async with scheduler.lease(servable, deadline=deadline, priority=priority) as leased:
        began = time.time()
        try:
            return await run(leased)
        except ModelMoraError as error:
            if not was_lost(error):
                raise
            log.warning("request is run once more", model_id=leased.model_id, reason=error.message)
    await until_noticed(scheduler, leased, began, deadline)
    async with scheduler.lease(servable, deadline=deadline, priority=priority) as leased:
        return await run(leased)


def was_lost(error: ModelMoraError) -> bool:
    """True when Triton's failure, the error's cause, says that the process is dead or gone."""
    cause = error.__cause__
    if isinstance(cause, ModelFailed) and _RESTARTED.search(cause.message):
        return True
    lost = isinstance(cause, StubUnhealthy | ModelUnknown | TritonUnavailable)
    return lost and not isinstance(cause, QueueFull)


async def until_noticed(
    scheduler: Scheduler,
    servable: Servable,
    began: float,
    deadline: float,
    *,
    server_is_up: Callable[[], bool] = lambda: True,
) -> None:
    """Wait until those who watch have seen a death, so that a new lease waits for healing.

    Args:
        began: `time.time()` when the lease on the dead process was taken.
        deadline: on the event loop's clock; after NOTICE_SECONDS nobody is waited for any more.
        server_is_up: False once the loss of the whole server was seen.
    """
    loop = asyncio.get_running_loop()
    end = min(deadline, loop.time() + NOTICE_SECONDS)
    while loop.time() < end:
        if not server_is_up() or _is_noticed(scheduler, servable, began):
            return
        await asyncio.sleep(_NOTICE_POLL)


def _is_noticed(scheduler: Scheduler, servable: Servable, began: float) -> bool:
    view = scheduler.view(servable.model_id)
    if view is None or view.state is not ModelState.LOADED or view.loaded_at is None:
        return True
    return view.loaded_at.timestamp() > began or view.triton_version != servable.triton_version
