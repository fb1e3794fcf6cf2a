"""Both Python clients behind one call, since they offer the same operations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.client import AsyncModelMoraClient, ModelMoraClient


def call_sync(url: str, operation: str, *args: Any, **kwargs: Any) -> Any:
    with ModelMoraClient(url) as client:
        return getattr(client, operation)(*args, **kwargs)


def call_async(url: str, operation: str, *args: Any, **kwargs: Any) -> Any:
    async def ask() -> Any:
        async with AsyncModelMoraClient(url) as client:
            return await getattr(client, operation)(*args, **kwargs)

    return asyncio.run(ask())


# `@pytest.fixture(params=CALLS)`, whose value is `request.param`.
CALLS = [pytest.param(call_sync, id="sync"), pytest.param(call_async, id="async")]
