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
    from collections.abc import AsyncGenerator

T = TypeVar("T")

# After so many seconds without a response it is looked whether the process lives.
LOOK_EVERY = 0.5


async def while_alive(
    responses: AsyncGenerator[T, None], process_id: int | None
) -> AsyncGenerator[T, None]:
    """The responses as they come.

    Args:
        process_id: of the model; None where it cannot be seen.

    Raises:
        StubUnhealthy: the process has died, and nothing more came from it.
    """
    while True:
        coming = asyncio.ensure_future(anext(responses, None))
        try:
            while not (await asyncio.wait({coming}, timeout=LOOK_EVERY))[0]:
                if process_id is not None and not memory.alive(process_id):
                    raise StubUnhealthy("its process died in the midst of the answer")
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        response = coming.result()
        if response is None:
            return
        yield response
