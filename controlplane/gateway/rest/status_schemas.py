"""JSON bodies that tell where a model stands between disk and clients (domain §8.3)."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import Id, Request, Version, present

if TYPE_CHECKING:
    from controlplane.lifecycle.history import ModelHistory
    from controlplane.lifecycle.resident import ResidentView


class LoadRequest(Request):
    version: Version | None = None


class HealthStatus(msgspec.Struct, kw_only=True):
    healthy: bool
    consecutive_failures: int
    last_check_at: datetime | UnsetType = UNSET
    error_message: str | UnsetType = UNSET
    response_time_ms: float | UnsetType = UNSET


class LoadTimes(msgspec.Struct, kw_only=True):
    """Loads of a version since the service began; times in seconds."""

    count: int
    failures: int
    last_seconds: float | UnsetType = UNSET
    mean_seconds: float | UnsetType = UNSET
    max_seconds: float | UnsetType = UNSET
    last_failure: str | UnsetType = UNSET
    last_failure_at: datetime | UnsetType = UNSET

    @classmethod
    def of(cls, history: ModelHistory) -> LoadTimes:
        return cls(
            count=history.loads,
            failures=history.failures,
            last_seconds=_rounded(history.last_load_seconds),
            mean_seconds=_rounded(history.mean_load_seconds),
            max_seconds=_rounded(history.max_load_seconds),
            last_failure=present(history.last_failure),
            last_failure_at=present(history.last_failure_at),
        )


def _rounded(value: float | None) -> float | UnsetType:
    return UNSET if value is None else round(value, 3)


class ModelStatusResponse(msgspec.Struct, kw_only=True):
    """A version of a model: where it stands between disk and clients, and what it went through.

    Memory is MB. `request_count` counts since it was loaded, hits and misses since the service
    began.
    """

    model_id: Id
    version: Version
    state: Literal["unloaded", "loading", "loaded", "unhealthy", "unloading", "failed"]
    memory_usage_mb: float
    peak_memory_mb: float
    device: str
    request_count: int
    active_requests: int
    health_status: HealthStatus
    loaded_at: datetime | UnsetType = UNSET
    last_used_at: datetime | UnsetType = UNSET
    load_seconds: float | UnsetType = UNSET
    process_id: int | UnsetType = UNSET
    gpu_vram_mb: float | UnsetType = UNSET
    waiting_requests: Annotated[
        int, Meta(description="Requests that wait for its load, or for their turn.")
    ] = 0
    estimated_memory_mb: Annotated[
        float | UnsetType, Meta(description="What a load reserves of the budget.")
    ] = UNSET
    measured_memory_mb: Annotated[
        float | UnsetType, Meta(description="Its processes' memory, when last looked at.")
    ] = UNSET
    memory_source: Annotated[
        Literal["measured", "last_measured", "declared", "estimated"] | UnsetType,
        Meta(
            description="Where `memory_usage_mb`, or `estimated_memory_mb` of a model that is not "
            "in memory, comes from: measured now, at an earlier load, declared at registration, or "
            "estimated from its files."
        ),
    ] = UNSET
    state_since: datetime | UnsetType = UNSET
    keep_loaded: bool = False
    cache_hits: Annotated[int, Meta(description="Requests that found it loaded.")] = 0
    cache_misses: Annotated[int, Meta(description="Requests that did not.")] = 0
    coalesced_requests: Annotated[
        int, Meta(description="Of these, those that joined a load others had asked for.")
    ] = 0
    evictions: int = 0
    unhealthy_count: Annotated[
        int, Meta(description="How often it was taken out of service and loaded afresh.")
    ] = 0
    last_unload_reason: str | UnsetType = UNSET
    loads: LoadTimes | UnsetType = UNSET
    retry_at: Annotated[
        datetime | UnsetType, Meta(description="When a failed model may be tried again.")
    ] = UNSET

    @classmethod
    def of(cls, view: ResidentView) -> ModelStatusResponse:
        history = view.history
        return cls(
            model_id=view.model_id,
            version=view.version,
            state=view.state.value,
            memory_usage_mb=round(view.memory_mb, 1),
            peak_memory_mb=round(view.peak_mb, 1),
            device=view.device,
            request_count=view.request_count,
            active_requests=view.active_requests,
            health_status=HealthStatus(
                healthy=view.healthy,
                consecutive_failures=view.consecutive_failures,
                last_check_at=present(view.last_check_at),
                error_message=present(view.health_error),
                response_time_ms=present(view.response_time_ms),
            ),
            loaded_at=present(view.loaded_at),
            last_used_at=present(view.last_used_at),
            load_seconds=present(view.load_seconds),
            process_id=present(view.process_id),
            gpu_vram_mb=UNSET if view.gpu_mb is None else round(view.gpu_mb, 1),
            waiting_requests=view.waiting_requests,
            estimated_memory_mb=round(view.estimated_mb, 1),
            measured_memory_mb=round(view.memory_mb, 1) if view.measured else UNSET,
            memory_source=view.memory_source,  # type: ignore[arg-type]
            state_since=present(history.since),
            keep_loaded=view.keep_loaded,
            cache_hits=view.hits,
            cache_misses=view.misses,
            coalesced_requests=view.coalesced,
            evictions=history.evictions,
            unhealthy_count=history.unhealthy,
            last_unload_reason=present(history.last_unload_reason),
            loads=LoadTimes.of(history),
            retry_at=present(view.retry_at),
        )


class UnloadResponse(msgspec.Struct, kw_only=True):
    model_id: Id
    freed_mb: float
    unloaded: bool = True
