"""Routes that bring models into memory and out of it."""

from __future__ import annotations

import asyncio

from litestar import post
from litestar.params import FromPath, JSONBody

from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import LoadRequest, ModelStatusResponse, UnloadResponse
from controlplane.gateway.services import GivenServices

TAGS = ["Lifecycle"]
_ONE = "/api/v1/models/{org:str}/{repo:str}"


@post(
    f"{_ONE}/load",
    status_code=200,
    operation_id="loadModel",
    summary="Load a model",
    tags=TAGS,
    responses=failures(400, 404, 409, 415, 500, 503, 504),
)
async def load_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    data: JSONBody[LoadRequest | None] = None,
) -> ModelStatusResponse:
    """Load a model now, unloading others if room is needed; answers when it is loaded."""
    servable = services.store.servable(model_name(org, repo), data.version if data else None)
    deadline = asyncio.get_running_loop().time() + services.settings.load_timeout
    return ModelStatusResponse.of(await services.scheduler.load(servable, deadline=deadline))


@post(
    f"{_ONE}/unload",
    status_code=200,
    operation_id="unloadModel",
    summary="Unload a model",
    tags=TAGS,
    responses=failures(400, 404, 409),
)
async def unload_model(
    org: FromPath[str], repo: FromPath[str], services: GivenServices
) -> UnloadResponse:
    """Let running requests end, then free the model's memory; answers when it is free."""
    model_id = services.store.get(model_name(org, repo)).model_id
    freed = await services.scheduler.unload(model_id)
    return UnloadResponse(model_id=model_id, freed_mb=round(freed, 1))


ROUTES = [load_model, unload_model]
