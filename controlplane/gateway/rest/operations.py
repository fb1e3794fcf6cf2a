"""Routes of operations: list, read, watch, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from litestar import Response, delete, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.response import Stream
from litestar.response.sse import ServerSentEventMessage

from controlplane.gateway.rest.operation_schemas import (
    PATH,
    OperationPageResponse,
    OperationResponse,
)
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import Pagination
from controlplane.gateway.services import GivenServices

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from controlplane.registry.operation import Operation

TAGS = ["Operations"]
_ONE = f"{PATH}/{{operation_id:str}}"
# The id of the last event: a browser that comes back with it is told to stay away (204).
_END = "end"
_RETRY_MILLISECONDS = 2000


@get(
    PATH,
    operation_id="listOperations",
    summary="List operations",
    tags=TAGS,
    responses=failures(400),
)
async def list_operations(
    services: GivenServices,
    model_id: Annotated[str | None, QueryParameter(description="Only of this model.")] = None,
    kind: Annotated[
        str | None, QueryParameter(description="install, sync, verify or tune.")
    ] = None,
    status: Annotated[
        str | None,
        QueryParameter(
            description="pending, running, succeeded, failed, cancelled, "
            "or active for the first two."
        ),
    ] = None,
    page: Annotated[int, QueryParameter(description="From 1.")] = 1,
    page_size: Annotated[int, QueryParameter(description="1 to 100.")] = 20,
) -> OperationPageResponse:
    """A page of operations, the newest first. Of those that ended the newest 1,000 are kept."""
    found = services.installer.operations.page(
        model_id=model_id, kind=kind, status=status, page=page, page_size=page_size
    )
    return OperationPageResponse(
        data=[OperationResponse.of(operation) for operation in found.items],
        pagination=Pagination.of(found),
    )


@get(
    _ONE,
    operation_id="getOperation",
    summary="Read an operation",
    tags=TAGS,
    responses=failures(404),
)
async def get_operation(operation_id: FromPath[str], services: GivenServices) -> OperationResponse:
    """One operation as it stands now."""
    return OperationResponse.of(services.installer.operations.get(operation_id))


@get(
    f"{_ONE}/events",
    operation_id="watchOperation",
    summary="Watch an operation",
    tags=TAGS,
    media_type="text/event-stream",
    responses={
        204: ResponseSpec(None, description="It has ended, and you have seen that."),
        **failures(404),
    },
)
async def watch_operation(
    operation_id: FromPath[str],
    services: GivenServices,
    last_event_id: Annotated[
        str | None, HeaderParameter(name="Last-Event-ID", description="Sent by browsers.")
    ] = None,
) -> Response[None] | Stream:
    """Server-sent events: `progress` at each change, `end` when it has ended; then the stream ends.

    Each carries the operation as JSON. The first comes at once, whatever was seen before: events
    are states, so nothing has to be repeated. A comment every 15 seconds keeps connections open.
    """
    operation = services.installer.operations.get(operation_id)
    if last_event_id == _END and not operation.active:
        return Response(None, status_code=204)
    changes = services.installer.operations.watch(operation_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Stream(_events(changes), media_type="text/event-stream", headers=headers)


async def _events(
    changes: AsyncGenerator[Operation | None, None],
) -> AsyncGenerator[bytes, None]:
    yield ServerSentEventMessage(data=None, retry=_RETRY_MILLISECONDS).encode()
    number = 0
    try:
        async for operation in changes:
            number += 1
            yield _event(operation, number).encode()
    finally:
        await changes.aclose()  # at once, and not when the garbage collector finds it


def _event(operation: Operation | None, number: int) -> ServerSentEventMessage:
    if operation is None:
        return ServerSentEventMessage(data=None, comment="still at it")
    return ServerSentEventMessage(
        data=msgspec.json.encode(OperationResponse.of(operation)),
        event="progress" if operation.active else "end",
        id=number if operation.active else _END,
    )


@delete(
    _ONE,
    status_code=200,
    operation_id="cancelOperation",
    summary="Cancel an operation",
    tags=TAGS,
    responses=failures(404, 409),
)
async def cancel_operation(
    operation_id: FromPath[str], services: GivenServices
) -> OperationResponse:
    """Stop it; answers when it has stopped. An installation publishes nothing and keeps whole
    downloads; a sync keeps what it has done, and the installations that it began end with it."""
    return OperationResponse.of(await services.installer.operations.cancel(operation_id))


def accepted(operation: Operation) -> Response[OperationResponse]:
    """202: it goes on after this answer; `Location` says where to watch it."""
    body = OperationResponse.of(operation)
    return Response(body, status_code=202, headers={"Location": body.links.self})


ROUTES = [list_operations, get_operation, watch_operation, cancel_operation]
