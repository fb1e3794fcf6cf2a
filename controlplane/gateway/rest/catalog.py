"""The route that brings about what a catalog file lists."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from litestar import post
from litestar.params import JSONBody
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.model_schemas import Requirements
from controlplane.gateway.rest.operation_schemas import OperationErrorBody, OperationResponse
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import (
    Id,
    IdleTtl,
    Json,
    KeepLoaded,
    Request,
    TrustRemoteCode,
    Version,
)
from controlplane.gateway.services import GivenServices
from controlplane.lifecycle.versions import use_version
from controlplane.registry.catalog_file import CatalogEntry
from controlplane.registry.catalog_sync import SyncResult, sync

TAGS = ["Catalog file"]


class CatalogEntryBody(Request):
    """A model that is wanted; what is left out stays as it is, or is found out."""

    model_id: Id
    version: Version | None = None
    task_type: Annotated[str | None, Meta(examples=["txt2embed"])] = None
    source_url: str | None = None
    display_name: str | None = None
    description: str | None = None
    config: Json | None = None
    resource_requirements: Requirements | None = None
    preload: Annotated[bool | None, Meta(description="Load it when the server starts.")] = None
    pinned: Annotated[
        bool, Meta(description="The version must be a commit or a semantic version.")
    ] = False
    trust_remote_code: TrustRemoteCode = False

    keep_loaded: KeepLoaded | None = None
    idle_ttl: IdleTtl | None = None

    def to_domain(self) -> CatalogEntry:
        values = msgspec.structs.asdict(self)
        if self.resource_requirements is not None:
            values["resource_requirements"] = self.resource_requirements.to_domain()
        return CatalogEntry(**values)


class CatalogSyncRequest(Request):
    models: list[CatalogEntryBody]
    dry_run: Annotated[bool, Meta(description="Only tell what would be done.")] = False


class CatalogResultBody(msgspec.Struct, kw_only=True):
    model_id: Id
    version: Version
    actions: list[Literal["register", "add_version", "update", "install", "use"]]
    status: Literal["planned", "unchanged", "installing", "done", "failed"]
    message: str | UnsetType = UNSET
    operation: OperationResponse | UnsetType = UNSET
    error: OperationErrorBody | UnsetType = UNSET

    @classmethod
    def of(cls, result: SyncResult) -> CatalogResultBody:
        error, operation = result.error, result.operation
        return cls(
            model_id=result.model_id,
            version=result.version,
            actions=[action.value for action in result.actions],
            status=result.status,  # type: ignore[arg-type]
            message=result.message or UNSET,
            operation=UNSET if operation is None else OperationResponse.of(operation),
            error=UNSET
            if error is None
            else OperationErrorBody(code=error.code, message=error.message),
        )


class CatalogSyncResponse(msgspec.Struct, kw_only=True):
    """One result per entry, in the order of the request."""

    dry_run: bool
    in_sync: Annotated[bool, Meta(description="Nothing was to be done for any entry.")]
    results: list[CatalogResultBody]


@post(
    "/api/v1/catalog/sync",
    status_code=200,
    operation_id="syncCatalog",
    summary="Install what a catalog file lists",
    tags=TAGS,
    responses=failures(400, 413, 415),
)
async def sync_catalog(
    data: JSONBody[CatalogSyncRequest], services: GivenServices
) -> CatalogSyncResponse:
    """Register, change and install the listed models; others are left alone.

    It may be repeated: what is as wanted stays `unchanged`. Installations run on as operations. An
    entry that fails is in its result and keeps no other from being done.
    """

    async def use(model_id: str, version: str) -> None:
        timeout = services.settings.load_timeout
        await use_version(
            services.store, services.scheduler, model_id, version, load_timeout=timeout
        )

    results = await sync(
        services.store,
        services.installer,
        [entry.to_domain() for entry in data.models],
        use=use,
        dry_run=data.dry_run,
    )
    return CatalogSyncResponse(
        dry_run=data.dry_run,
        in_sync=all(result.status == "unchanged" for result in results),
        results=[CatalogResultBody.of(result) for result in results],
    )


ROUTES = [sync_catalog]
