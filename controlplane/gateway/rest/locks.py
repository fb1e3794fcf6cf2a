"""Routes of locks: write, read, compare, import and export, sync, verify, roll back."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter

from controlplane.events import utc_now
from controlplane.gateway.rest.lock_schemas import (
    ComparisonResponse,
    CreateLockRequest,
    LockApiEntry,
    LockApiFile,
    LockApiRequest,
    LockList,
    LockResponse,
    LockRevisions,
    LockSummary,
    RollbackRequest,
    SyncLockRequest,
    UpdateLockRequest,
)
from controlplane.gateway.rest.operation_schemas import OperationResponse
from controlplane.gateway.rest.operations import accepted
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.services import GivenServices
from controlplane.registry import lock_file
from controlplane.registry.lock import LOCK_VERSION, LockDocument

TAGS = ["Locks"]
AnyRequest = Request[Any, Any, Any]
YAML = "application/yaml"
_PATH = "/api/v1/locks"
_ONE = f"{_PATH}/{{name:str}}"
_ModelQuery = Annotated[
    list[str] | None,
    QueryParameter(name="model", description="Only these models; else all that are ready."),
]
_UpgradeQuery = Annotated[
    list[str] | None,
    QueryParameter(name="upgrade", description="Models whose newest installed version counts."),
]


@get(_PATH, operation_id="listLocks", summary="List locks", tags=TAGS)
async def list_locks(
    services: GivenServices,
    environment: Annotated[str | None, QueryParameter(description="Only of this one.")] = None,
) -> LockList:
    """All locks, by name."""
    found = services.locking.locks.every(environment)
    return LockList(data=[LockSummary.of(lock) for lock in found])


@post(
    _PATH,
    status_code=201,
    operation_id="createLock",
    summary="Write a lock from the catalog",
    tags=TAGS,
    responses=failures(400, 404, 409, 413, 415),
)
async def create_lock(data: JSONBody[CreateLockRequest], services: GivenServices) -> LockResponse:
    """Lock the current versions of all ready models, or of those chosen."""
    lock = services.locking.create(
        data.name,
        data.environment,
        description=data.description,
        models=data.models,
        upgrade=data.upgrade,
        created_by=data.created_by,
    )
    return LockResponse.of(lock)


@get(_ONE, operation_id="getLock", summary="Read a lock", tags=TAGS, responses=failures(404))
async def get_lock(name: FromPath[str], services: GivenServices) -> LockResponse:
    """One lock with all its entries."""
    return LockResponse.of(services.locking.locks.get(name))


@put(
    _ONE,
    operation_id="updateLock",
    summary="Change a lock",
    tags=TAGS,
    responses=failures(400, 404, 409, 413, 415),
)
async def update_lock(
    name: FromPath[str], data: JSONBody[UpdateLockRequest], services: GivenServices
) -> LockResponse:
    """Take its entries anew from the catalog, or change what describes it."""
    lock = services.locking.change(
        name,
        refresh=data.refresh,
        models=data.models,
        upgrade=data.upgrade,
        environment=data.environment,
        description=data.description,
        active=data.active,
        expected_version=data.version_number,
    )
    return LockResponse.of(lock)


@delete(
    _ONE,
    status_code=204,
    operation_id="deleteLock",
    summary="Delete a lock",
    tags=TAGS,
    responses=failures(404),
)
async def delete_lock(name: FromPath[str], services: GivenServices) -> None:
    """Forget a lock with all it ever said; its models stay."""
    services.locking.locks.delete(name)


@get(
    f"{_ONE}/export",
    operation_id="exportLock",
    summary="A lock as a file",
    tags=TAGS,
    media_type=YAML,
    responses=failures(400, 404),
)
async def export_lock(
    name: FromPath[str],
    services: GivenServices,
    version: Annotated[int | None, QueryParameter(description="As it was then.")] = None,
) -> Response[str]:
    """The content of `modelmora.lock`: the same bytes as long as the lock is the same."""
    return Response(services.locking.export(name, version), media_type=YAML)


@get(
    f"{_ONE}/revisions",
    operation_id="listLockRevisions",
    summary="What a lock said",
    tags=TAGS,
    responses=failures(404),
)
async def lock_revisions(name: FromPath[str], services: GivenServices) -> LockRevisions:
    """The lock at each of its versions."""
    return LockRevisions.of(name, services.locking.locks.revisions(name))


@post(
    f"{_ONE}/rollback",
    status_code=200,
    operation_id="rollbackLock",
    summary="Go back to an earlier version of a lock",
    tags=TAGS,
    responses=failures(400, 404, 409, 415),
)
async def rollback_lock(
    name: FromPath[str], data: JSONBody[RollbackRequest], services: GivenServices
) -> LockResponse:
    """Have the lock say again what it said then. Models are not touched: that is a sync's."""
    lock = services.locking.rollback(name, data.version, expected_version=data.version_number)
    return LockResponse.of(lock)


@post(
    f"{_ONE}/sync",
    status_code=202,
    operation_id="syncLock",
    summary="Make this machine equal a lock",
    tags=TAGS,
    responses={
        200: ResponseSpec(ComparisonResponse, description="A dry run: what would be done."),
        **failures(400, 404, 409, 415),
    },
)
async def sync_lock(
    name: FromPath[str],
    services: GivenServices,
    data: JSONBody[SyncLockRequest | None] = None,
) -> Response[OperationResponse] | Response[ComparisonResponse]:
    """Begin to install, switch, remove and verify; the answer is the operation to watch it by.

    One runs at a time, another waits for its turn; the same once more is the same operation.
    """
    wanted = data or SyncLockRequest()
    lock = services.locking.locks.get(name)
    if wanted.dry_run:
        found = services.locking.compare(lock.document, prune=wanted.prune)
        return Response(ComparisonResponse.of(name, found), status_code=200)
    begun = services.lock_operations.sync(lock, frozen=wanted.frozen, prune=wanted.prune)
    return accepted(begun)


@post(
    f"{_ONE}/verify",
    status_code=202,
    operation_id="verifyLock",
    summary="Hash everything that a lock names",
    tags=TAGS,
    responses=failures(400, 404),
)
async def verify_lock(name: FromPath[str], services: GivenServices) -> Response[OperationResponse]:
    """Begin to compare the files on this machine with the lock; watch the operation."""
    return accepted(services.lock_operations.verify(services.locking.locks.get(name)))


@get(
    f"{_PATH}/activities/{{activity_id:str}}",
    include_in_schema=False,
    operation_id="getLockActivity",
)
async def lock_activity(activity_id: FromPath[str], services: GivenServices) -> OperationResponse:
    """Where syncs were asked for before they became operations: `/api/v1/operations/{id}`."""
    return OperationResponse.of(services.installer.operations.get(activity_id))


@post(
    f"{_PATH}/import",
    status_code=201,
    operation_id="importLock",
    summary="Keep a lock that is a file",
    tags=TAGS,
    responses=failures(400, 413),
)
async def import_lock(request: AnyRequest, services: GivenServices) -> Response[LockResponse]:
    """Send the content of `modelmora.lock`. 200 when there was a lock of its name before."""
    lock, created = services.locking.take(await _document(request))
    return Response(LockResponse.of(lock), status_code=201 if created else 200)


@post(
    f"{_PATH}/compare",
    status_code=200,
    operation_id="compareLock",
    summary="A lock's file beside the catalog",
    tags=TAGS,
    responses=failures(400, 404, 409, 413),
)
async def compare_lock(
    request: AnyRequest,
    services: GivenServices,
    models: _ModelQuery = None,
    upgrade: _UpgradeQuery = None,
    prune: Annotated[bool, QueryParameter(description="Plan with removals.")] = False,
) -> ComparisonResponse:
    """Send the content of `modelmora.lock`; nothing is changed."""
    document = await _document(request)
    found = services.locking.compare(document, models=models, upgrade=upgrade or (), prune=prune)
    return ComparisonResponse.of(document.name, found)


@post(
    f"{_PATH}/verify",
    status_code=202,
    operation_id="verifyLockFile",
    summary="Hash everything that a lock's file names",
    tags=TAGS,
    responses=failures(400, 413),
)
async def verify_lock_file(
    request: AnyRequest, services: GivenServices
) -> Response[OperationResponse]:
    """Send the content of `modelmora.lock`; it is not kept."""
    return accepted(services.lock_operations.verify_file(await _document(request)))


@post(
    "/api/v1/models/lock",
    status_code=200,
    operation_id="lockModels",
    summary="The catalog as a short lock",
    tags=TAGS,
    responses=failures(400, 404, 409, 415),
)
async def lock_models(
    services: GivenServices, data: JSONBody[LockApiRequest | None] = None
) -> LockApiFile:
    """What is installed now, with checksums; kept nowhere."""
    entries = services.locking.snapshot(data.models if data else None)
    return LockApiFile(
        version=LOCK_VERSION,
        generated_at=utc_now(),
        models=[
            LockApiEntry(
                model_id=entry.model_id,
                version=entry.version,
                source_url=entry.artifact_uri,
                checksum=entry.checksum,
                task_type=entry.task_type,
            )
            for entry in entries
        ],
    )


ROUTES = [
    list_locks,
    create_lock,
    get_lock,
    update_lock,
    delete_lock,
    export_lock,
    lock_revisions,
    rollback_lock,
    sync_lock,
    verify_lock,
    lock_activity,
    import_lock,
    compare_lock,
    verify_lock_file,
    lock_models,
]


async def _document(request: AnyRequest) -> LockDocument:
    # in a thread: a large file takes a while, and inference goes on meanwhile
    return await asyncio.to_thread(lock_file.parse, await request.body())
