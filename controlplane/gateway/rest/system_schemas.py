"""JSON bodies about the service as a whole: memory, Triton, who waits, health (domain §8.3)."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, UnsetType

from controlplane.gateway.rest.schemas import Id, Version
from controlplane.gateway.rest.status_schemas import ModelStatusResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.lifecycle.queue_view import WaitingView


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
