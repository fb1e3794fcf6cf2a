"""Routes that bring models into memory and out of it."""

from __future__ import annotations

import asyncio

from litestar import post
from litestar.params import FromPath, JSONBody

from controlplane.errors import ValidationFailed
from controlplane.gateway.rest.lifecycle_schemas import (
    MOST_PLANNED,
    PlannedModel,
    PlanRequest,
    PlanResponse,
    WarmUpRequest,
    WarmUpResponse,
)
from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.status_schemas import (
    LoadRequest,
    ModelStatusResponse,
    UnloadResponse,
)
from controlplane.gateway.services import GivenServices, Services
from controlplane.gateway.trace import name_model
from controlplane.lifecycle.plan import Need, plan
from controlplane.lifecycle.warmup import warm_up

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


@post(
    f"{_ONE}/warmup",
    status_code=200,
    operation_id="warmUpModel",
    summary="Warm a model up",
    tags=TAGS,
    responses=failures(400, 404, 409, 415, 500, 503, 504),
)
async def warm_up_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    data: JSONBody[WarmUpRequest | None] = None,
) -> WarmUpResponse:
    """Load a model if need be and run test inferences on it; answers how long each took."""
    wanted = data or WarmUpRequest()
    servable = services.store.servable(model_name(org, repo), wanted.version)
    deadline = asyncio.get_running_loop().time() + services.settings.load_timeout
    done = await warm_up(services.scheduler, servable, samples=wanted.samples, deadline=deadline)
    return WarmUpResponse.of(done)


@post(
    "/api/v1/lifecycle/plan",
    status_code=200,
    operation_id="planLoad",
    summary="Plan a load",
    tags=TAGS,
    responses=failures(400, 404, 409, 413, 415),
)
async def plan_load(data: JSONBody[PlanRequest], services: GivenServices) -> PlanResponse:
    """What loading these models, in this order, would evict, why, and whether they fit together.

    Nothing changes. Models that are requested meanwhile may change what happens."""
    if not 1 <= len(data.models) <= MOST_PLANNED:
        raise ValidationFailed.field("models", f"must list 1 to {MOST_PLANNED} models")
    needs = [_need(services, entry) for entry in data.models]
    return PlanResponse.of(plan(services.scheduler.snapshot(), needs))


def _need(services: Services, entry: PlannedModel) -> Need:
    servable = services.store.servable(entry.model_id, entry.version)
    name_model(servable.model_id)
    version = services.store.version(servable.model_id, servable.version)
    need_mb, measured = services.scheduler.need_mb(servable)
    return Need(
        model_id=servable.model_id,
        version=servable.version,
        key=servable.key,
        need_mb=need_mb,
        source="measured" if measured else version.need_source,
    )


ROUTES = [load_model, unload_model, warm_up_model, plan_load]
