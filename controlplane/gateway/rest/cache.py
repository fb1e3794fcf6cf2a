"""Routes of the cache of received files: list, prune, verify."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from litestar import get, post
from litestar.params import JSONBody, QueryParameter
from msgspec import Meta

from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import Request
from controlplane.gateway.services import GivenServices
from controlplane.registry.blobs import Blob, Pruned, Verified

_TAGS = ["Cache"]
_PATH = "/api/v1/cache"


class CacheResponse(msgspec.Struct, kw_only=True):
    """What is in the cache; sizes in bytes, the largest blobs first."""

    blobs: list[Blob]
    blob_count: int
    bytes: int
    unused_bytes: int
    saved_bytes: int
    partials: int
    partial_bytes: int


class PruneRequest(Request):
    dry_run: Annotated[bool, Meta(description="Only say what would be removed.")] = False


@get(
    _PATH,
    operation_id="getCache",
    summary="What is in the cache",
    tags=_TAGS,
    responses=failures(400),
)
async def get_cache(
    services: GivenServices,
    limit: Annotated[
        int, QueryParameter(description="List so many blobs at most.", ge=0, le=10_000)
    ] = 100,
) -> CacheResponse:
    """Files that versions share, who has them, and broken-off downloads."""
    found = await asyncio.to_thread(services.installer.cache.content)
    return CacheResponse(
        blobs=list(found.blobs[:limit]),
        blob_count=len(found.blobs),
        bytes=found.bytes,
        unused_bytes=found.unused_bytes,
        saved_bytes=found.saved_bytes,
        partials=found.partials,
        partial_bytes=found.partial_bytes,
    )


@post(
    f"{_PATH}/prune",
    status_code=200,
    operation_id="pruneCache",
    summary="Remove what no version uses",
    tags=_TAGS,
    responses=failures(400, 415),
)
async def prune_cache(
    services: GivenServices, data: JSONBody[PruneRequest | None] = None
) -> Pruned:
    """Remove unused files and broken-off downloads; what runs now is left alone."""
    dry_run = data is not None and data.dry_run
    return await asyncio.to_thread(services.installer.cache.prune, dry_run=dry_run)


@post(
    f"{_PATH}/verify",
    status_code=200,
    operation_id="verifyCache",
    summary="Hash every file of the cache",
    tags=_TAGS,
)
async def verify_cache(services: GivenServices) -> Verified:
    """Read everything again. A damaged file leaves the cache; the versions with it are named."""
    return await asyncio.to_thread(services.installer.cache.verify)


ROUTES = [get_cache, prune_cache, verify_cache]
