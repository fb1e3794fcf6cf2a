"""The route that makes a backup of the database while it is served."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from litestar import post
from litestar.params import JSONBody
from msgspec import Meta

from controlplane.backups import named, write_backup
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import Request
from controlplane.gateway.services import GivenServices


class BackupRequest(Request):
    name: Annotated[
        str | None, Meta(description="Of the file; without it, a name is made of the time.")
    ] = None


class BackupBody(msgspec.Struct, kw_only=True):
    """A finished, checked copy; `path` is on the server's machine, `schema` its last migration."""

    path: str
    bytes: int
    models: int
    events: int
    schema: str


@post(
    "/api/v1/db/backup",
    status_code=201,
    operation_id="backUpDatabase",
    summary="Back up the database",
    tags=["System"],
    responses=failures(400, 409, 415, 507),
)
async def back_up(
    services: GivenServices, data: JSONBody[BackupRequest | None] = None
) -> BackupBody:
    """Write a checked copy of the catalog and its events to `backups/` in the data directory."""
    settings = services.settings
    target = named(settings.data_dir, data.name if data else None)
    # In a thread with a connection of its own: requests are served meanwhile.
    done = await asyncio.to_thread(write_backup, settings.database, target)
    return BackupBody(**msgspec.structs.asdict(done))


ROUTES = [back_up]
