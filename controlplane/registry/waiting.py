"""Awaiting what cannot be interrupted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


async def to_its_end(
    work: asyncio.Future[_T], on_cancel: Callable[[], object] = lambda: None
) -> _T:
    """Await work in a thread, which cannot be interrupted: when cancelled, wait for it first.

    Without that the thread would go on writing into folders that are being removed.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        on_cancel()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # looked at, so that it is not reported as lost
        raise
