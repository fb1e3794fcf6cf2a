"""Metrics that are read at each scrape from the scheduler: what is so now can never be stale.

Counters of hits and misses are here too: counting each request as it comes would cost every one
of them, and the scheduler's books have the numbers anyway.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.lifecycle.state import HOLDING_MEMORY, ModelState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from controlplane.lifecycle.queue_view import WaitingView
    from controlplane.lifecycle.resident import ResidentView

_MB = 1024 * 1024
_PRIORITIES = {1: "critical", 2: "high", 3: "medium", 4: "low"}


class MemoryView(Protocol):
    """What the gauges are read from: the scheduler; memory in MB."""

    @property
    def used_mb(self) -> float: ...

    @property
    def budget_mb(self) -> float: ...

    @property
    def max_models(self) -> int: ...

    @property
    def server_up(self) -> bool: ...

    def every_view(self) -> Sequence[ResidentView]: ...

    def waiting(self) -> Sequence[WaitingView]: ...


@dataclass(frozen=True, kw_only=True)
class Still:
    """All that the gauges tell of, at one moment: to be read in another thread."""

    used_mb: float
    budget_mb: float
    max_models: int
    server_up: bool
    views: Sequence[ResidentView]
    waiting: Sequence[WaitingView]

    @classmethod
    def of(cls, memory: MemoryView) -> Still:
        """The present moment; on the event loop's thread."""
        return cls(
            used_mb=memory.used_mb,
            budget_mb=memory.budget_mb,
            max_models=memory.max_models,
            server_up=memory.server_up,
            views=memory.every_view(),
            waiting=memory.waiting(),
        )

    @property
    def loaded(self) -> Sequence[ResidentView]:
        """Those in memory, on their way in or out, or failed."""
        return [view for view in self.views if view.state is not ModelState.UNLOADED]


class Gauges(Collector):
    """What was so at one moment."""

    def __init__(self, memory: Still) -> None:
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        loaded = self._memory.loaded
        yield from self._budget(loaded)
        yield from _machine()
        yield from _per_model(loaded)
        yield from _requests(self._memory.views)
        yield _queue(self._memory.waiting)

    def _budget(self, views: Sequence[ResidentView]) -> Iterator[Metric]:
        memory = self._memory
        loaded = sum(view.state is ModelState.LOADED for view in views)
        reserved = sum(view.memory_mb for view in views if view.state is ModelState.LOADING)
        used, budget = memory.used_mb, memory.budget_mb
        percent = 100 * used / budget if budget else 0.0
        yield _gauge("modelmora_models_loaded", "Models that are loaded.", loaded)
        yield _gauge("modelmora_models_max", "Models that may be in memory.", memory.max_models)
        yield _gauge("modelmora_memory_budget_bytes", "Memory for models.", budget * _MB)
        yield _gauge("modelmora_memory_used_bytes", "What counts against it.", used * _MB)
        yield _gauge(
            "modelmora_memory_reserved_bytes",
            "The part of it that belongs to loads under way.",
            reserved * _MB,
        )
        yield _gauge("modelmora_memory_usage_percent", "Memory of models, of the budget.", percent)
        yield _gauge("modelmora_triton_up", "1 while Triton answers.", memory.server_up)


def _machine() -> Iterator[Metric]:
    yield _gauge(
        "modelmora_system_memory_available_bytes",
        "Memory the machine could still give away.",
        psutil.virtual_memory().available,
    )


def _per_model(views: Sequence[ResidentView]) -> Iterator[Metric]:
    held = [view for view in views if view.state in HOLDING_MEMORY]
    measured = [view for view in held if view.measured]
    yield _by_model(
        "modelmora_model_memory_usage_bytes",
        "Memory that counts for a model: measured, or reserved while it loads.",
        ((view.model_id, view.memory_mb * _MB) for view in held),
    )
    yield _by_model(
        "modelmora_model_memory_estimated_bytes",
        "What a load of the model reserves.",
        ((view.model_id, view.estimated_mb * _MB) for view in views),
        merge=max,
    )
    yield _by_model(
        "modelmora_model_memory_measured_bytes",
        "Memory of the model's processes, when last looked at.",
        ((view.model_id, view.memory_mb * _MB) for view in measured),
    )
    yield _by_model(
        "modelmora_model_memory_peak_bytes",
        "The most that was ever measured of it.",
        ((view.model_id, view.peak_mb * _MB) for view in views),
        merge=max,
    )
    yield _by_model(
        "modelmora_model_active_requests",
        "Requests that hold a lease and run.",
        ((view.model_id, view.active_requests) for view in views),
    )
    yield _by_model(
        "modelmora_model_waiting_requests",
        "Requests that wait for the model's load, or for their turn.",
        ((view.model_id, view.waiting_requests) for view in views),
    )
    yield _by_model(
        "modelmora_model_healthy",
        "1 while the model is loaded and answers its test inferences.",
        ((view.model_id, view.healthy) for view in views),
        merge=max,
    )
    yield _by_model(
        "modelmora_model_last_used_timestamp_seconds",
        "When its last request began or ended.",
        ((v.model_id, v.last_used_at.timestamp()) for v in views if v.last_used_at),
        merge=max,
    )
    yield _states(views)


def _requests(views: Sequence[ResidentView]) -> Iterator[Metric]:
    yield _counted(
        "modelmora_model_cache_hits",
        "Requests that found their model loaded.",
        ((view.model_id, view.hits) for view in views),
    )
    yield _counted(
        "modelmora_model_cache_misses",
        "Requests that did not.",
        ((view.model_id, view.misses) for view in views),
    )
    yield _counted(
        "modelmora_model_coalesced_requests",
        "Requests that joined a load which others had asked for.",
        ((view.model_id, view.coalesced) for view in views),
    )


def _states(views: Iterable[ResidentView]) -> Metric:
    """One sample per model and state it is in: two versions may be in memory during a switch."""
    family = GaugeMetricFamily(
        "modelmora_model_state",
        "Versions of a model in a state; models that are not in memory are left out.",
        labels=["model_id", "state"],
    )
    for (model_id, state), count in Counter((v.model_id, str(v.state)) for v in views).items():
        family.add_metric([model_id, state], count)
    return family


def _queue(waiting: Iterable[WaitingView]) -> Metric:
    family = GaugeMetricFamily(
        "modelmora_queue_depth",
        "Requests that wait for a model to be loaded.",
        labels=["priority"],
    )
    found = Counter(view.priority for view in waiting)
    for level, name in _PRIORITIES.items():
        family.add_metric([name], found[level])
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_model(
    name: str,
    text: str,
    values: Iterable[tuple[str, float]],
    merge: Callable[[float, float], float] = lambda one, other: one + other,
) -> Metric:
    """A gauge per model; versions of it are added up, or merged otherwise."""
    merged: dict[str, float] = {}
    for model_id, value in values:
        merged[model_id] = merge(merged[model_id], value) if model_id in merged else value
    family = GaugeMetricFamily(name, text, labels=["model_id"])
    for model_id, value in merged.items():
        family.add_metric([model_id], value)
    return family


def _counted(name: str, text: str, values: Iterable[tuple[str, int]]) -> Metric:
    sums: defaultdict[str, int] = defaultdict(int)
    for model_id, value in values:
        sums[model_id] += value
    family = CounterMetricFamily(name, text, labels=["model_id"])
    for model_id, value in sums.items():
        family.add_metric([model_id], value)
    return family
