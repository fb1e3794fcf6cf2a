"""What has happened to models since the service began, summed up from the events as they come.

The event store has all of it for ever; this is what people want to see beside a model's state.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from controlplane import events

if TYPE_CHECKING:
    from collections.abc import Callable

Key = tuple[str, str]


class ModelHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Of one version of a model; times in seconds.

    Attributes:
        since: of the present state.
        loads, failures: loads that succeeded, and that did not.
        unhealthy: how often it was taken out of service because it did not answer.
        evictions: how often it had to leave for want of memory, or because it was idle.
    """

    since: datetime | None = None
    loads: int = 0
    load_seconds: float = 0.0
    last_load_seconds: float | None = None
    max_load_seconds: float | None = None
    failures: int = 0
    last_failure: str | None = None
    last_failure_at: datetime | None = None
    unhealthy: int = 0
    evictions: int = 0
    last_unload_reason: str | None = None

    @property
    def mean_load_seconds(self) -> float | None:
        return self.load_seconds / self.loads if self.loads else None


# Reasons of an unload that nobody asked for and that no fault caused.
EVICTIONS = frozenset({"lru_eviction", "idle_ttl", "memory_pressure", "yielded"})
_MOVES = (
    events.ModelLoadRequested,
    events.ModelLoaded,
    events.ModelLoadFailed,
    events.ModelFailureCleared,
    events.ModelHealthChanged,
    events.ModelUnloadRequested,
    events.ModelUnloaded,
)
_NOTHING = ModelHistory()


class History:
    """Listens to the bus from its construction on.

    Attributes:
        server_restarts: how often Triton came back.
        server_since: when it was last lost or restored; None before the first loss.
    """

    def __init__(self, bus: events.EventBus) -> None:
        self._models: dict[Key, ModelHistory] = {}
        self.server_restarts = 0
        self.server_since: datetime | None = None
        listeners: dict[type[events.DomainEvent], Callable[..., None]] = {
            events.ModelLoaded: self._on_loaded,
            events.ModelLoadFailed: self._on_failed,
            events.ModelHealthChanged: self._on_health,
            events.ModelUnloaded: self._on_unloaded,
            events.ModelUnregistered: self._on_unregistered,
            events.TritonLost: self._on_server,
            events.TritonRestored: self._on_server,
        }
        for move in _MOVES:
            bus.subscribe(move, self._on_move)
        for event_class, listener in listeners.items():
            bus.subscribe(event_class, listener)

    def of(self, model_id: str, version: str) -> ModelHistory:
        """What happened to that version; all zeros when nothing did."""
        return self._models.get((model_id, version), _NOTHING)

    def _change(self, event: events.DomainEvent, **fields: object) -> None:
        key: Key = (event.model_id, event.version)  # type: ignore[attr-defined]
        self._models[key] = msgspec.structs.replace(self._models.get(key, _NOTHING), **fields)

    def _on_move(self, event: events.DomainEvent) -> None:
        self._change(event, since=event.timestamp)

    def _on_loaded(self, event: events.ModelLoaded) -> None:
        known, seconds = self.of(event.model_id, event.version), event.load_seconds
        self._change(
            event,
            loads=known.loads + 1,
            load_seconds=known.load_seconds + seconds,
            last_load_seconds=seconds,
            max_load_seconds=max(known.max_load_seconds or 0.0, seconds),
        )

    def _on_failed(self, event: events.ModelLoadFailed) -> None:
        known = self.of(event.model_id, event.version)
        self._change(
            event,
            failures=known.failures + 1,
            last_failure=event.error_message,
            last_failure_at=event.timestamp,
        )

    def _on_health(self, event: events.ModelHealthChanged) -> None:
        if event.new_state == "unhealthy":
            known = self.of(event.model_id, event.version)
            self._change(
                event,
                unhealthy=known.unhealthy + 1,
                last_failure=event.error_message,
                last_failure_at=event.timestamp,
            )

    def _on_unloaded(self, event: events.ModelUnloaded) -> None:
        known = self.of(event.model_id, event.version)
        evictions = known.evictions + (event.reason in EVICTIONS)
        self._change(event, evictions=evictions, last_unload_reason=event.reason)

    def _on_unregistered(self, event: events.ModelUnregistered) -> None:
        for key in [key for key in self._models if key[0] == event.model_id]:
            del self._models[key]

    def _on_server(self, event: events.DomainEvent) -> None:
        self.server_since = event.timestamp
        self.server_restarts += isinstance(event, events.TritonRestored)
