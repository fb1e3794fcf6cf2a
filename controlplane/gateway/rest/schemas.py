"""The JSON bodies of the REST API (domain §8.3), but those that have a module of their own.

Absent values are UNSET, never null: what has no value is left out (domain §1.6). Memory is MB.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.lifecycle.history import ModelHistory
    from controlplane.lifecycle.queue_view import WaitingView
    from controlplane.lifecycle.resident import ResidentView

T = TypeVar("T")

_EXAMPLE_ID = "sentence-transformers/all-MiniLM-L6-v2"
Id = Annotated[str, Meta(description="Model id, ORG/NAME.", examples=[_EXAMPLE_ID])]
Version = Annotated[
    str,
    Meta(description="Tag, branch, commit or semantic version.", examples=["main"]),
]
EngineName = Annotated[
    str,
    Meta(
        description="What runs an exported model: onnxruntime, openvino, torchscript; auto, or "
        "left out: the fastest on this machine that computes the same.",
        examples=["openvino"],
    ),
]
PrecisionName = Annotated[
    str,
    Meta(description="fp32, bf16, fp16, int8 (only when asked for), or auto.", examples=["bf16"]),
]
KeepLoaded = Annotated[
    bool, Meta(description="It stays in memory: it is never evicted, and comes back by itself.")
]
IdleTtl = Annotated[
    float,
    Meta(
        description="Seconds without use after which it leaves memory; 0 is right after use, "
        "below 0 never. Left out: as the setting says.",
        examples=[600],
    ),
]
Json = dict[str, Any]


def present(value: T | None) -> T | UnsetType:
    """`value`, or UNSET for None."""
    return UNSET if value is None else value


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies: a misspelt field is an error, not a silent default."""


def without_nulls(value: msgspec.Struct) -> Json:
    """A struct as a JSON object, without what has no value (domain §1.6)."""
    found = {}
    for name, field in ((name, getattr(value, name)) for name in value.__struct_fields__):
        if field is not None:
            nested = isinstance(field, msgspec.Struct)
            found[name] = without_nulls(field) if nested else msgspec.to_builtins(field)
    return found


class Pagination(msgspec.Struct, kw_only=True):
    page: int
    page_size: int
    total_items: int
    total_pages: int

    @classmethod
    def of(cls, page: object) -> Pagination:
        """Of whatever has these four."""
        return msgspec.convert(page, cls, from_attributes=True)


# -- lifecycle ---------------------------------------------------------------------------------


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


# -- the system --------------------------------------------------------------------------------


class MemoryStatus(msgspec.Struct, kw_only=True):
    """Memory in MB.

    Attributes:
        total_mb: of this machine or its cgroup.
        used_mb: what loaded models take of the budget.
        available_mb: what the machine could still give away.
        threshold_mb: the budget for models.
    """

    total_mb: float
    used_mb: float
    available_mb: float
    threshold_mb: float


class GpuDevice(msgspec.Struct, kw_only=True):
    device_id: int
    name: str


class GpuStatus(msgspec.Struct, kw_only=True):
    available: bool
    devices: list[GpuDevice]


class TritonStatus(msgspec.Struct, kw_only=True):
    """`restarts` since the service began; `since` is when it was last lost or came back."""

    state: Literal["stopped", "starting", "ready", "lost"]
    kind: Literal["embedded", "external"]
    grpc_url: str
    http_url: str
    restarts: int = 0
    since: datetime | UnsetType = UNSET
    process_id: int | UnsetType = UNSET


class ModelCounts(msgspec.Struct, kw_only=True):
    registered: int
    ready: int


class QueueDepth(msgspec.Struct, kw_only=True):
    """Requests that wait for a model to be loaded, by priority."""

    critical_priority: int = 0
    high_priority: int = 0
    medium_priority: int = 0
    low_priority: int = 0

    @classmethod
    def of(cls, waiting: Iterable[WaitingView]) -> QueueDepth:
        found = Counter(view.priority for view in waiting)
        return cls(
            critical_priority=found[1],
            high_priority=found[2],
            medium_priority=found[3],
            low_priority=found[4],
        )


class BudgetStatus(msgspec.Struct, kw_only=True):
    """Memory for models, in MB, and places for them.

    Attributes:
        used_mb: what counts against the budget: measured, reserved, or being freed.
        reserved_mb: the part of it that belongs to models that are being loaded.
        leaving_mb: the part of it that is being freed.
    """

    budget_mb: float
    used_mb: float
    reserved_mb: float
    leaving_mb: float
    free_mb: float
    models: int
    max_models: int


class WaitingRequest(msgspec.Struct, kw_only=True):
    """`priority` is 1 (critical) to 4 (low)."""

    model_id: Id
    version: Version
    priority: int
    waits_for: Literal[
        "load", "room", "unload", "healing", "version_switch", "turn", "retry", "triton"
    ]
    waited_seconds: float

    @classmethod
    def of(cls, view: WaitingView) -> WaitingRequest:
        return cls(**msgspec.structs.asdict(view))


class LifecycleResponse(msgspec.Struct, kw_only=True):
    """What the lifecycle manager sees.

    Attributes:
        waiting: requests that wait for a load, in the order of their turn; at most 100 of
            `waiting_count`.
        last_event: `sequence` of the newest event: follow the events from here.
    """

    time: datetime
    uptime_seconds: float
    device: str
    memory: BudgetStatus
    triton: TritonStatus
    models: list[ModelStatusResponse]
    waiting: list[WaitingRequest]
    waiting_count: int
    queue_depth: QueueDepth
    last_event: int


class SystemStatus(msgspec.Struct, kw_only=True):
    version: str
    uptime_seconds: float
    memory: MemoryStatus
    gpu: GpuStatus
    triton: TritonStatus
    loaded_models: list[ModelStatusResponse]
    models: ModelCounts
    queue_depth: QueueDepth


class Alive(msgspec.Struct, kw_only=True):
    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, kw_only=True):
    """`checks` says "ok" or what is wrong, for each thing the service needs."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


class Health(msgspec.Struct, kw_only=True):
    status: Literal["ok", "degraded"]
    version: str
    uptime_seconds: float
    models_loaded: int


class ModelHealth(msgspec.Struct, kw_only=True):
    model_id: Id
    healthy: bool
    last_check_at: datetime | UnsetType = UNSET
    error: str | UnsetType = UNSET


class ModelsHealth(msgspec.Struct, kw_only=True):
    healthy_count: int
    unhealthy_count: int
    models: list[ModelHealth]


# -- errors ------------------------------------------------------------------------------------


class ErrorBody(msgspec.Struct, kw_only=True):
    code: Annotated[str, Meta(description="Stable code.", examples=["MODEL_NOT_FOUND"])]
    message: str
    details: Annotated[
        Json | UnsetType, Meta(description="`fields` maps field paths to messages.")
    ] = UNSET
    trace_id: Annotated[
        str | UnsetType, Meta(description="Finds the request in the server's log.")
    ] = UNSET


class ErrorResponse(msgspec.Struct, kw_only=True):
    error: ErrorBody
