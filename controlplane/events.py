"""Domain events (domain §6) and the in-process bus.

Events are past-tense facts. Those of the registry are written to the event store in the same
transaction as the change they tell of (`registry/store.py`); the bus then carries them to
listeners. A command that fails raises; a listener that fails is logged and forgotten.
"""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

CATALOG = "model_catalog"
LIFECYCLE = "model_lifecycle_manager"
INFERENCE = "inference_queue"
# There is one of each, and neither has a row of its own to take an id from.
_ONLY_ONES = {
    LIFECYCLE: "00000000-0000-4000-8000-000000000002",
    INFERENCE: "00000000-0000-4000-8000-000000000003",
}
LOCK = "model_lock"


def utc_now() -> datetime:
    """The present moment, timezone-aware, in UTC."""
    return datetime.now(timezone.utc)


def random_id() -> str:
    """A random UUID (RFC 9562 §5.4) as text, at a fifth of what the `uuid` module takes.

    It is no secret: the interpreter's own generator, seeded by the system, will do.
    """
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


class DomainEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope of domain §6.1; subclasses add the payload's fields.

    Attributes:
        aggregate_id: id of the catalog, lifecycle manager or queue the event happened in.
        schema_version: version of the payload's schema, not of a model.
    """

    event_type: ClassVar[str]
    aggregate_type: ClassVar[str]
    schema_version: ClassVar[int] = 1
    # Events of single requests are for listeners only: a row per inference would make the
    # event store the slowest part of serving.
    stored: ClassVar[bool] = True

    aggregate_id: str = ""
    event_id: str = msgspec.field(default_factory=random_id)
    timestamp: datetime = msgspec.field(default_factory=utc_now)

    def __post_init__(self) -> None:
        if not self.aggregate_id:
            only_one = _ONLY_ONES.get(self.aggregate_type, "")
            msgspec.structs.force_setattr(self, "aggregate_id", only_one)

    def payload(self) -> dict[str, Any]:
        """The fields beyond the envelope, nulls left out."""
        envelope = DomainEvent.__struct_fields__
        fields = (name for name in self.__struct_fields__ if name not in envelope)
        values = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in values.items() if value is not None}


class ModelRegistered(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.registered"
    aggregate_type = CATALOG
    model_id: str
    task_type: str
    version: str


class ModelUpdated(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.updated"
    aggregate_type = CATALOG
    model_id: str
    fields: list[str]


class ModelUnregistered(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.unregistered"
    aggregate_type = CATALOG
    model_id: str


class ModelVersionAdded(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.version.added"
    aggregate_type = CATALOG
    model_id: str
    version: str
    checksum: str | None = None


class ModelVersionChanged(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.version.changed"
    aggregate_type = CATALOG
    model_id: str
    previous_version: str
    version: str


class ModelVersionRemoved(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.version.removed"
    aggregate_type = CATALOG
    model_id: str
    version: str


class ModelDownloadRequested(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.download.requested"
    aggregate_type = CATALOG
    model_id: str
    version: str


class ModelVersionPinned(DomainEvent, frozen=True, kw_only=True):
    """The version's source was resolved to a commit and its bytes to a checksum."""

    event_type = "model.version.pinned"
    aggregate_type = CATALOG
    model_id: str
    version: str
    checksum: str
    revision: str | None = None


class ModelCodeTrusted(DomainEvent, frozen=True, kw_only=True):
    """The version was registered to run code of its repository while it is converted.

    Attributes:
        trusted_by: who registered it, where that was said.
        allowed_by: the setting that lets it.
    """

    event_type = "model.version.code_trusted"
    aggregate_type = CATALOG
    model_id: str
    version: str
    trusted_by: str | None = None
    allowed_by: str = "allow_remote_code"


class ModelVersionStatusChanged(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.version.status_changed"
    aggregate_type = CATALOG
    model_id: str
    version: str
    previous_status: str
    status: str
    error_message: str | None = None


class ModelLoadRequested(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.load.requested"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str


class ModelLoaded(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.loaded"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    memory_mb: float
    load_seconds: float
    process_id: int | None = None


class ModelLoadFailed(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.load.failed"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    error_message: str
    attempt: int = 1


class ModelFailureCleared(DomainEvent, frozen=True, kw_only=True):
    """A failed model may be loaded again. `reason`: retry (somebody asks for it once more) or
    server_lost."""

    event_type = "model.failure.cleared"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    reason: str


class ModelUnloadRequested(DomainEvent, frozen=True, kw_only=True):
    """It takes no more requests and leaves when the running ones have ended; `reason` as in
    `ModelUnloaded`."""

    event_type = "model.unload.requested"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    reason: str


class ModelUnloaded(DomainEvent, frozen=True, kw_only=True):
    """`reason`: manual, lru_eviction, yielded (others had waited too long while it was busy),
    idle_ttl, memory_pressure, unhealthy_restart, version_switch, unloaded_elsewhere, server_lost or
    shutdown."""

    event_type = "model.unloaded"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    reason: str
    uptime_seconds: float


class ModelEvicted(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.evicted"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    freed_mb: float


class ModelHealthChanged(DomainEvent, frozen=True, kw_only=True):
    event_type = "model.health.changed"
    aggregate_type = LIFECYCLE
    model_id: str
    version: str
    previous_state: str
    new_state: str
    error_message: str | None = None


class MemoryThresholdExceeded(DomainEvent, frozen=True, kw_only=True):
    """Memory has come to be used beyond a limit; told once, until it is within it again.

    `scope`: budget (all models together), model (one took more than 1.2 times what was reserved
    for it; `model_id` names it) or machine (all processes; the limit keeps the reserve free).
    """

    event_type = "memory.threshold.exceeded"
    aggregate_type = LIFECYCLE
    scope: str
    used_mb: float
    threshold_mb: float
    model_id: str | None = None
    version: str | None = None


class TritonLost(DomainEvent, frozen=True, kw_only=True):
    """The server died or answers no more; what it had in memory is gone."""

    event_type = "triton.lost"
    aggregate_type = LIFECYCLE


class TritonRestored(DomainEvent, frozen=True, kw_only=True):
    """The server answers again, with nothing in memory."""

    event_type = "triton.restored"
    aggregate_type = LIFECYCLE


class InferenceFinished(DomainEvent, frozen=True, kw_only=True):
    """One inference call ended, over any transport. `status`: success or error.

    It is counted by listeners and kept by nobody: there may be thousands a second, so none is
    given an id.
    """

    event_type = "inference.finished"
    aggregate_type = INFERENCE
    stored = False
    aggregate_id: str = _ONLY_ONES[INFERENCE]
    event_id: str = ""
    model_id: str
    task_type: str
    protocol: str
    status: str
    duration_seconds: float
    batch_size: int | None = None
    error_code: str | None = None


class LockCreated(DomainEvent, frozen=True, kw_only=True):
    event_type = "lock.created"
    aggregate_type = LOCK
    name: str
    environment: str
    models: int


class LockUpdated(DomainEvent, frozen=True, kw_only=True):
    """`lock_version` is the number of the revision; the lists hold model ids."""

    event_type = "lock.updated"
    aggregate_type = LOCK
    name: str
    lock_version: int
    active: bool
    added: list[str] = []
    changed: list[str] = []
    removed: list[str] = []


class LockDeleted(DomainEvent, frozen=True, kw_only=True):
    event_type = "lock.deleted"
    aggregate_type = LOCK
    name: str


E = TypeVar("E", bound=DomainEvent)


class EventBus:
    """Calls listeners in the order of their subscription, on the publisher's thread."""

    def __init__(self) -> None:
        self._handlers: dict[type[DomainEvent], list[Callable[[Any], None]]] = defaultdict(list)
        # Who listens to a class and to those it is derived from; looked up for each request.
        self._listeners: dict[type[DomainEvent], tuple[Callable[[Any], None], ...]] = {}

    def subscribe(self, event_class: type[E], handler: Callable[[E], None]) -> None:
        """Have `handler` called for each event of `event_class` or of its subclasses."""
        self._handlers[event_class].append(handler)
        self._listeners.clear()

    def publish(self, event: DomainEvent) -> None:
        """Tell all listeners. A listener that raises is logged; the publisher goes on."""
        listeners = self._listeners.get(type(event))
        if listeners is None:
            listeners = self._listeners[type(event)] = self._listening_to(type(event))
        for handler in listeners:
            try:
                handler(event)
            except Exception:
                log.exception("event listener failed", event_type=event.event_type)

    def _listening_to(self, event_class: type[DomainEvent]) -> tuple[Callable[[Any], None], ...]:
        handlers = self._handlers
        return tuple(h for base in event_class.__mro__ for h in handlers.get(base, ()))
