"""Events of the lifecycle in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.cli.exits import one_line
from controlplane.cli.output import duration, megabytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.client_types import Event

_REASONS = {
    "manual": "asked for",
    "lru_eviction": "room for another",
    "yielded": "its turn was over",
    "idle_ttl": "idle",
    "memory_pressure": "memory is short",
    "unloaded_elsewhere": "somebody else unloaded it",
    "unhealthy_restart": "to heal it",
    "version_switch": "another version takes over",
    "server_lost": "Triton died",
    "shutdown": "the service stops",
}
_WORDS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "model.load.requested": (lambda _: "load begins", "cyan"),
    "model.loaded": (
        lambda p: f"loaded in {p.get('load_seconds', 0):.1f} s, {megabytes(p.get('memory_mb'))}",
        "green",
    ),
    "model.load.failed": (lambda p: f"load failed: {p.get('error_message', '')}", "bold red"),
    "model.failure.cleared": (lambda _: "may be loaded again", ""),
    "model.unload.requested": (lambda p: f"unload begins: {_reason(p)}", "yellow"),
    "model.unloaded": (
        lambda p: f"unloaded after {duration(p.get('uptime_seconds', 0))}: {_reason(p)}",
        "",
    ),
    "model.evicted": (lambda p: f"evicted, {megabytes(p.get('freed_mb'))} are free", "yellow"),
    "model.health.changed": (
        lambda p: f"{p.get('new_state', '')}: {p.get('error_message', '')}",
        "bold red",
    ),
    "memory.threshold.exceeded": (
        lambda p: (
            f"{megabytes(p.get('used_mb'))} used, more than {megabytes(p.get('threshold_mb'))}"
        ),
        "bold red",
    ),
    "triton.lost": (lambda _: "Triton died or answers no more", "bold red"),
    "triton.restored": (lambda _: "Triton is back", "green"),
}


def described(event: Event) -> tuple[str, str]:
    """What an event says, on one line, and the style of it."""
    known = _WORDS.get(event.event_type)
    if known is None:
        return event.event_type, ""
    words, style = known
    return one_line(words(event.payload)), style


def _reason(payload: dict[str, Any]) -> str:
    reason = str(payload.get("reason", ""))
    return _REASONS.get(reason, reason.replace("_", " "))
