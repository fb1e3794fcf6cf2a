"""Routes that show what is in memory and who waits, and follow it as it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from litestar import get
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream

from controlplane.errors import VersionNotFound
from controlplane.event_log import EventFilter
from controlplane.events import LIFECYCLE, utc_now
from controlplane.gateway.rest.events import (
    STREAM_RESPONSES,
    After,
    LastEventId,
    ModelName,
    Type,
    event_stream,
)
from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import present
from controlplane.gateway.rest.status_schemas import HealthStatus, ModelStatusResponse
from controlplane.gateway.rest.system import triton_status, uptime
from controlplane.gateway.rest.system_schemas import (
    BudgetStatus,
    LifecycleResponse,
    QueueDepth,
    WaitingRequest,
)
from controlplane.gateway.services import GivenServices
from controlplane.lifecycle.memory import device
from controlplane.lifecycle.resident import earlier_source
from controlplane.lifecycle.state import HOLDING_MEMORY, ModelState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.gateway.services import Services
    from controlplane.lifecycle.resident import ResidentView
    from controlplane.registry.model import ModelVersion

TAGS = ["Lifecycle"]
WAITING_SHOWN = 100


@get(
    "/api/v1/lifecycle",
    operation_id="getLifecycle",
    summary="What is in memory, and who waits",
    tags=TAGS,
)
async def lifecycle(services: GivenServices) -> LifecycleResponse:
    """The lifecycle manager's view: budget, models, waiting requests in their order, Triton."""
    scheduler = services.scheduler
    views, waiting = scheduler.loaded(), scheduler.waiting()
    return LifecycleResponse(
        time=utc_now(),
        uptime_seconds=uptime(services),
        device=device(),
        memory=_budget(services, views),
        triton=triton_status(services),
        models=[ModelStatusResponse.of(view) for view in views],
        waiting=[WaitingRequest.of(view) for view in waiting[:WAITING_SHOWN]],
        waiting_count=len(waiting),
        queue_depth=QueueDepth.of(waiting),
        last_event=services.store.event_log.last(),
    )


def _budget(services: Services, views: Sequence[ResidentView]) -> BudgetStatus:
    scheduler = services.scheduler

    def taken(state: ModelState) -> float:
        return sum(view.memory_mb for view in views if view.state is state)

    return BudgetStatus(
        budget_mb=round(scheduler.budget_mb, 1),
        used_mb=round(scheduler.used_mb, 1),
        reserved_mb=round(taken(ModelState.LOADING), 1),
        leaving_mb=round(taken(ModelState.UNLOADING), 1),
        free_mb=round(max(0.0, scheduler.budget_mb - scheduler.used_mb), 1),
        models=sum(view.state in HOLDING_MEMORY for view in views),
        max_models=scheduler.max_models,
    )


@get(
    "/api/v1/models/{org:str}/{repo:str}/status",
    operation_id="getModelStatus",
    summary="Where a model stands",
    tags=TAGS,
    responses=failures(400, 404),
)
async def model_status(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    version: Annotated[
        str | None,
        QueryParameter(description="Else the version that is in memory, or the current one."),
    ] = None,
) -> ModelStatusResponse:
    """State, memory, loads and failures of a version, in memory or not."""
    model = services.store.get(model_name(org, repo))
    seen = services.scheduler.view(model.model_id) if version is None else None
    if seen is not None:
        return ModelStatusResponse.of(seen)
    wanted = model.current if version is None else model.find_version(version)
    if wanted is None:
        raise VersionNotFound(model.model_id, version or "")
    view = services.scheduler.view_of(wanted.triton_name, wanted.triton_version)
    return ModelStatusResponse.of(view) if view else _never_asked_for(services, wanted)


def _never_asked_for(services: Services, version: ModelVersion) -> ModelStatusResponse:
    history = services.scheduler.history.of(version.model_id, version.version)
    return ModelStatusResponse(
        model_id=version.model_id,
        version=version.version,
        state="unloaded",
        memory_usage_mb=0.0,
        peak_memory_mb=0.0,
        device=device(),
        request_count=0,
        active_requests=0,
        health_status=HealthStatus(healthy=False, consecutive_failures=0),
        estimated_memory_mb=round(version.need_mb, 1),
        memory_source=earlier_source(version.need_source),  # type: ignore[arg-type]
        state_since=present(history.since),
    )


@get(
    "/api/v1/lifecycle/events",
    operation_id="followLifecycle",
    summary="Follow what enters and leaves memory",
    tags=TAGS,
    responses=STREAM_RESPONSES,
)
async def follow_lifecycle(
    services: GivenServices,
    event_type: Type = None,
    model_id: ModelName = None,
    after: After = None,
    last_event_id: LastEventId = None,
) -> Stream:
    """As the stream of all events, of loads, unloads, health and Triton alone."""
    wanted = EventFilter(event_type=event_type, aggregate_type=LIFECYCLE, model_id=model_id)
    return event_stream(services.store.event_log, wanted, after, last_event_id)


ROUTES = [lifecycle, model_status, follow_lifecycle]
