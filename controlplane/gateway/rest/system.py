"""Routes about the service itself: status, settings, health, metrics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import structlog
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec

from controlplane.errors import DatabaseUnusable
from controlplane.gateway.rest.schemas import present
from controlplane.gateway.rest.status_schemas import ModelStatusResponse
from controlplane.gateway.rest.system_schemas import (
    Alive,
    GpuDevice,
    GpuStatus,
    Health,
    MemoryStatus,
    ModelCounts,
    ModelHealth,
    ModelsHealth,
    QueueDepth,
    Readiness,
    SystemStatus,
    TritonStatus,
)
from controlplane.gateway.services import GivenServices, Services
from controlplane.lifecycle.state import ModelState
from controlplane.settings import machine_memory_mb

log = structlog.get_logger(__name__)

_SYSTEM = ["System"]
_HEALTH = ["Health"]
_MB = 1024 * 1024
# The NVIDIA driver's own listing (one folder per GPU): no library, no process to start.
_GPUS = Path("/proc/driver/nvidia/gpus")


@get("/api/v1/status", operation_id="getStatus", summary="State of the service", tags=_SYSTEM)
async def status(services: GivenServices) -> SystemStatus:
    """Memory, GPUs, Triton and the loaded models."""
    gpus = _gpu_devices()
    return SystemStatus(
        version=services.version,
        uptime_seconds=uptime(services),
        memory=MemoryStatus(
            total_mb=machine_memory_mb(),
            used_mb=round(services.scheduler.used_mb, 1),
            available_mb=psutil.virtual_memory().available // _MB,
            threshold_mb=services.scheduler.budget_mb,
        ),
        gpu=GpuStatus(available=bool(gpus), devices=gpus),
        triton=triton_status(services),
        loaded_models=[ModelStatusResponse.of(view) for view in services.scheduler.loaded()],
        models=ModelCounts(
            registered=services.store.list(page_size=1).total_items,
            ready=services.store.list(status="ready", page_size=1).total_items,
        ),
        queue_depth=QueueDepth.of(services.scheduler.waiting()),
    )


def triton_status(services: Services) -> TritonStatus:
    """Where Triton listens and how it is."""
    endpoints, history = services.server.endpoints, services.scheduler.history
    external = services.settings.triton_grpc_url is not None
    return TritonStatus(
        state=services.server.state,
        kind="external" if external else "embedded",
        grpc_url=endpoints.grpc_url,
        http_url=endpoints.http_url,
        restarts=history.server_restarts,
        since=present(history.server_since),
        process_id=present(services.server.pid),
    )


@get("/api/v1/settings", operation_id="getSettings", summary="Settings in force", tags=_SYSTEM)
async def settings(services: GivenServices) -> dict[str, Any]:
    """Every setting with the value it has; none of them is a secret."""
    return {k: v for k, v in services.settings.public().items() if v is not None}


@get(
    "/metrics",
    operation_id="getMetrics",
    summary="Prometheus metrics",
    tags=_SYSTEM,
    media_type="text/plain",
)
async def metrics(services: GivenServices) -> Response[bytes]:
    """The Prometheus text exposition."""
    content, content_type = await services.render_metrics()
    return Response(content, headers={"Content-Type": content_type}, media_type="text/plain")


@get("/api/v1/metrics", include_in_schema=False)
async def metrics_below_the_base(services: GivenServices) -> Response[bytes]:
    """The same, where the API's base path leads (domain C-24)."""
    content, content_type = await services.render_metrics()
    return Response(content, headers={"Content-Type": content_type}, media_type="text/plain")


@get("/health", operation_id="getHealth", summary="Health in short", tags=_HEALTH)
async def health(services: GivenServices) -> Health:
    """`degraded` while Triton is away, a model does not answer or the database is of no use."""
    views = services.scheduler.loaded()
    loaded = [view for view in views if view.state is ModelState.LOADED]
    up = services.server.state == "ready" and _check_database(services) == "ok"
    well = up and len(loaded) == len(
        [view for view in views if view.state is not ModelState.LOADING]
    )
    return Health(
        status="ok" if well else "degraded",
        version=services.version,
        uptime_seconds=uptime(services),
        models_loaded=len(loaded),
    )


@get("/health/live", operation_id="getLiveness", summary="Is the process alive?", tags=_HEALTH)
async def live() -> Alive:
    """Answers as long as the process does; asks nobody."""
    return Alive()


@get(
    "/health/ready",
    operation_id="getReadiness",
    summary="Can requests be served?",
    tags=_HEALTH,
    responses={503: ResponseSpec(Readiness, description="Something is not ready.")},
)
async def ready(services: GivenServices) -> Response[Readiness]:
    """Whether the database and Triton answer; 503 while one of them does not."""
    triton = services.server.state
    checks = {
        "database": _check_database(services),
        "triton": "ok" if triton == "ready" else f"is {triton}",
    }
    well = all(found == "ok" for found in checks.values())
    body = Readiness(status="ready" if well else "not_ready", checks=checks)
    return Response(body, status_code=200 if well else 503)


@get("/health/models", operation_id="getModelsHealth", summary="Health per model", tags=_HEALTH)
async def models_health(services: GivenServices) -> ModelsHealth:
    """The outcome of the last test inference of each model in memory."""
    views = [v for v in services.scheduler.loaded() if v.state is not ModelState.LOADING]
    healthy = sum(view.healthy for view in views)
    return ModelsHealth(
        healthy_count=healthy,
        unhealthy_count=len(views) - healthy,
        models=[
            ModelHealth(
                model_id=view.model_id,
                healthy=view.healthy,
                last_check_at=present(view.last_check_at),
                error=present(view.health_error),
            )
            for view in views
        ],
    )


ROUTES = [status, settings, metrics, metrics_below_the_base, health, live, ready, models_health]


def uptime(services: Services) -> float:
    """Seconds since the service's start."""
    return round(time.monotonic() - services.started_at, 3)


def _check_database(services: Services) -> str:
    try:
        services.check_database()
    except DatabaseUnusable as error:  # logged when it was found
        return error.what
    except Exception as error:  # noqa: BLE001 whatever is wrong with it, it is not ready
        log.warning("database check failed", error=str(error))
        return "does not answer"
    return "ok"


def _gpu_devices() -> list[GpuDevice]:
    folders = sorted(_GPUS.iterdir()) if _GPUS.is_dir() else []
    return [GpuDevice(device_id=i, name=_gpu_name(folder)) for i, folder in enumerate(folders)]


def _gpu_name(folder: Path) -> str:
    try:
        lines = (folder / "information").read_text().splitlines()
    except OSError:
        return "NVIDIA GPU"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))
    return next(names, "NVIDIA GPU")
