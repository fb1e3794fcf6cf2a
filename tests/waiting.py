"""Waiting for conditions, never for time."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


async def eventually(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """The condition's first true value; it may be a coroutine function.

    Raises:
        AssertionError: it was not true within `timeout` seconds.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert asyncio.get_running_loop().time() < deadline, f"not true within {timeout:g} s"
        await asyncio.sleep(0.02)
