"""Responses of a process that may die in their midst.

Triton (2.51) ends no stream of a decoupled model whose process has taken the request and died: its
client would hear nothing until its deadline.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from controlplane.lifecycle import memory
from controlplane.triton.failures import StubUnhealthy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

T = TypeVar("T")

# After so many seconds without a response it is looked whether the process lives.
LOOK_EVERY = 0.5


async def while_alive(
    responses: AsyncIterator[T], process_id: int | None
) -> AsyncGenerator[T, None]:
    """The responses as they come.

    Args:
        process_id: of the model; None where it cannot be seen.

    Raises:
        StubUnhealthy: the process has died, and nothing more came from it.
    """
    while (response := await of_living(anext(responses, None), process_id)) is not None:
        yield response


async def of_living(awaited: Awaitable[T], process_id: int | None) -> T:
    """What is awaited, of a process that may die instead of giving it.

    Raises:
        StubUnhealthy: the process has died; the awaitable is cancelled.
    """
    coming = asyncio.ensure_future(awaited)
    try:
        while not (await asyncio.wait({coming}, timeout=LOOK_EVERY))[0]:
            if process_id is not None and not memory.alive(process_id):
                raise StubUnhealthy("its process died in the midst of the answer")
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
    return coming.result()
