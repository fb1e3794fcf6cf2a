"""What the client returns and raises: the REST bodies as frozen structs.

Fields that a newer server adds are ignored; fields that an older one lacks are None.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

# -- errors ------------------------------------------------------------------------------------


class ModelMoraClientError(Exception):
    """Base of all errors this module raises."""


class ModelMoraApiError(ModelMoraClientError):
    """The server refused or failed.

    Attributes:
        code: the stable code, such as MODEL_NOT_FOUND (docs/errors.md lists all).
        details: machine-readable facts; `details["fields"]` names wrong fields.
        status: the HTTP status.
        trace_id: finds the request in the server's log.
    """

    def __init__(
        self,
        code: str,
        message: str,
        details: dict[str, Any] | None = None,
        status: int = 0,
        trace_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or {}
        self.status = status
        self.trace_id = trace_id


class ServerUnreachable(ModelMoraClientError):
    """No answer could be had from the server at `url`.

    Attributes:
        timed_out: somebody listens there and said nothing for too long.
    """

    def __init__(self, url: str, why: str, *, timed_out: bool = False) -> None:
        super().__init__(
            f"No answer from ModelMora at {url} ({why.rstrip('.')}): is `modelmora serve` running?"
        )
        self.url = url
        self.timed_out = timed_out


class InstallFailed(ModelMoraClientError):
    """The download or the conversion failed; the message is the server's reason."""

    def __init__(self, model: ModelInfo, reason: str | None = None) -> None:
        reason = reason or model.error or "no reason was recorded"
        super().__init__(f"{model.model_id} could not be installed: {reason}")
        self.model = model


class WaitTimeout(ModelMoraClientError):
    """What was waited for did not happen in time; the server may still be at it."""


# -- results (REST bodies) ---------------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an installation is. `fraction` is 0 to 1, `rate` bytes/s; None while unknown."""

    phase: str
    step: str = ""
    fraction: float | None = None
    message: str = ""
    bytes_done: int | None = None
    bytes_total: int | None = None
    rate: float | None = None


OnProgress = Callable[[Progress], None]


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalog. `status` and what comes of the bytes are those of `version`."""

    model_id: str
    task_type: str
    version: str
    status: str
    id: str | None = None
    current_version: str | None = None
    versions: list[str] = []
    error: str | None = None
    unavailable: str | None = None
    display_name: str | None = None
    description: str | None = None
    source_url: str | None = None
    config: dict[str, Any] | None = None
    custom_params: dict[str, Any] | None = None
    resource_requirements: dict[str, Any] | None = None
    revision: str | None = None
    checksum: str | None = None
    artifact_uri: str | None = None
    framework: str | None = None
    framework_version: str | None = None
    backend: str | None = None
    engine: str | None = None
    triton_name: str | None = None
    triton_version: int | None = None
    measured_memory_mb: float | None = None
    artefact_bytes: int | None = None
    artefact: dict[str, Any] | None = None
    progress: Progress | None = None
    facts: dict[str, dict[str, Any]] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    version_number: int | None = None
    pinned: bool = False
    keep_loaded: bool = False
    idle_ttl: float | None = None
    trust_remote_code: bool = False


class Pagination(msgspec.Struct, frozen=True, kw_only=True):
    page: int
    page_size: int
    total_items: int
    total_pages: int


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ModelInfo]
    pagination: Pagination


class HealthStatus(msgspec.Struct, frozen=True, kw_only=True):
    healthy: bool
    last_check_at: datetime | None = None
    error_message: str | None = None
    consecutive_failures: int = 0
    response_time_ms: float | None = None


class LoadTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Loads of a version since the service began; times in seconds."""

    count: int = 0
    failures: int = 0
    last_seconds: float | None = None
    mean_seconds: float | None = None
    max_seconds: float | None = None
    last_failure: str | None = None
    last_failure_at: datetime | None = None


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model and where it stands; memory in MB.

    `memory_source` says where the figure comes from: measured, last_measured, declared, estimated.
    """

    model_id: str
    version: str
    state: str
    memory_usage_mb: float | None = None
    peak_memory_mb: float | None = None
    device: str | None = None
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    request_count: int = 0
    active_requests: int = 0
    load_seconds: float | None = None
    process_id: int | None = None
    gpu_vram_mb: float | None = None
    health_status: HealthStatus | None = None
    waiting_requests: int = 0
    estimated_memory_mb: float | None = None
    measured_memory_mb: float | None = None
    memory_source: str | None = None
    state_since: datetime | None = None
    keep_loaded: bool = False
    cache_hits: int = 0
    cache_misses: int = 0
    coalesced_requests: int = 0
    evictions: int = 0
    unhealthy_count: int = 0
    last_unload_reason: str | None = None
    loads: LoadTimes | None = None
    retry_at: datetime | None = None


class Unloaded(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    unloaded: bool = True
    freed_mb: float | None = None


class InferMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds; `inference_time_ms` is Triton's part of `total_time_ms`.

    Attributes:
        usage: prompt_tokens, completion_tokens, total_tokens, of tasks that count them.
    """

    inference_time_ms: float | None = None
    total_time_ms: float | None = None
    batch_size: int | None = None
    device: str | None = None
    usage: dict[str, int] | None = None


class InferResult(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    version: str
    output_data: dict[str, Any]
    metadata: InferMetadata


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Megabytes; `threshold_mb` is the budget for models."""

    total_mb: float
    used_mb: float
    available_mb: float
    threshold_mb: float


class SystemStatus(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    uptime_seconds: float
    memory: Memory
    loaded_models: list[LoadedModel] = []
    models: dict[str, int] = {}
    triton: dict[str, Any] = {}
    gpu: dict[str, Any] = {}
    queue_depth: dict[str, int] = {}


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Memory for models in MB: of `used_mb`, `reserved_mb` are for loads under way and `leaving_mb`
    are being freed."""

    budget_mb: float
    used_mb: float
    reserved_mb: float = 0.0
    leaving_mb: float = 0.0
    free_mb: float = 0.0
    models: int = 0
    max_models: int = 0


class WaitingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that waits for a load. `priority` is 1 (critical) to 4 (low)."""

    model_id: str
    version: str
    priority: int
    waits_for: str
    waited_seconds: float


class Lifecycle(msgspec.Struct, frozen=True, kw_only=True):
    """What the lifecycle manager sees.

    `waiting` is in the order of their turn, at most 100 of `waiting_count`; `last_event` is the
    cursor to follow the events from.
    """

    time: datetime
    memory: Budget
    models: list[LoadedModel] = []
    waiting: list[WaitingRequest] = []
    waiting_count: int = 0
    triton: dict[str, Any] = {}
    queue_depth: dict[str, int] = {}
    uptime_seconds: float = 0.0
    device: str = "cpu"
    last_event: int = 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    version: str | None = None
    uptime_seconds: float | None = None
    models_loaded: int | None = None


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is ready or not_ready; `checks` says which part is not."""

    status: str
    checks: dict[str, Any] = {}


class ModelHealth(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    healthy: bool
    last_check_at: datetime | None = None
    error: str | None = None


class ModelsHealth(msgspec.Struct, frozen=True, kw_only=True):
    healthy_count: int
    unhealthy_count: int
    models: list[ModelHealth] = []


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `sequence` is the cursor; `version` its payload's schema."""

    sequence: int
    event_id: str
    event_type: str
    payload: dict[str, Any]
    timestamp: datetime
    version: int = 1
    aggregate_id: str | None = None
    aggregate_type: str | None = None


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page has `pagination`; what was read by the cursor has `next_after`."""

    data: list[Event]
    pagination: Pagination | None = None
    next_after: int | None = None


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """The cursor lay beyond the end of the store, as after an older backup was restored: what the
    store once had after `goes_on_after` is lost."""

    asked_after: int
    goes_on_after: int


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A finished copy of the database; `path` is on the server's machine."""

    path: str
    bytes: int
    models: int
    events: int
    schema: str


# -- cache -------------------------------------------------------------------------------------


class CacheBlob(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is stored once; `users` are `{triton_name}/{triton_version}`."""

    sha256: str
    size: int
    users: tuple[str, ...] = ()


class CacheContent(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the cache; sizes in bytes."""

    blobs: tuple[CacheBlob, ...]
    blob_count: int
    bytes: int
    unused_bytes: int
    saved_bytes: int
    partials: int
    partial_bytes: int


class CachePruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was, or with `dry_run` would be, removed."""

    dry_run: bool
    blobs: int
    partials: int
    freed_bytes: int


class CacheVerified(msgspec.Struct, frozen=True, kw_only=True):
    """How much was hashed, and what was not as it should be."""

    blobs: int
    bytes: int
    damaged: tuple[CacheBlob, ...] = ()
