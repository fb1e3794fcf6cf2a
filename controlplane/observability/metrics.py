"""Prometheus metrics (domain §5.2): counters from events, gauges read when they are asked for.

Triton exports its own figures of its queues and executions; these tell of the control plane.
Labels hold ids of registered models only, never text that a client made up.
"""

from __future__ import annotations

import platform
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING, Protocol

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane import events
from controlplane.lifecycle.memory import device
from controlplane.lifecycle.state import HOLDING_MEMORY, ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from controlplane.lifecycle.resident import ResidentView

_MB = 1024 * 1024
# From a single short text on an idle machine to a first request that loads a large model.
_DURATION_BUCKETS = (
    *(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class MemoryView(Protocol):
    """What the gauges are read from: the scheduler; memory in MB."""

    @property
    def used_mb(self) -> float: ...

    @property
    def budget_mb(self) -> float: ...

    def loaded(self) -> Sequence[ResidentView]: ...


class Metrics:
    """Listens to the bus from its construction on; `render` gives the exposition."""

    def __init__(
        self, bus: events.EventBus, memory: MemoryView, *, version: str | None = None
    ) -> None:
        self._registry = CollectorRegistry()
        self._make_request_metrics()
        self._make_lifecycle_metrics()
        Info("modelmora_service", "The running service.", registry=self._registry).info(
            {
                "version": version or distribution_version("modelmora"),
                "python_version": platform.python_version(),
                "gpu_enabled": str(device() == "cuda").lower(),
            }
        )
        self._registry.register(_Gauges(memory))
        ProcessCollector(registry=self._registry)
        bus.subscribe(events.InferenceFinished, self._on_inference)
        bus.subscribe(events.ModelLoaded, self._on_loaded)
        bus.subscribe(events.ModelUnloaded, self._on_unloaded)
        bus.subscribe(events.ModelEvicted, self._on_evicted)
        bus.subscribe(events.ModelLoadFailed, self._on_load_failed)

    def render(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _make_request_metrics(self) -> None:
        self._requests = Counter(
            "modelmora_requests_total",
            "Inference requests, by how they ended.",
            ["model_id", "status"],
            registry=self._registry,
        )
        self._failed = Counter(
            "modelmora_requests_failed_total",
            "Inference requests that failed, by protocol and error code.",
            ["model_id", "endpoint", "code"],
            registry=self._registry,
        )
        self._duration = Histogram(
            "modelmora_inference_duration_seconds",
            "From request to answer, waiting for a load included.",
            ["model_id", "task_type"],
            buckets=_DURATION_BUCKETS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "modelmora_batch_size",
            "Items in one request, where the request tells.",
            ["model_id"],
            buckets=_BATCH_BUCKETS,
            registry=self._registry,
        )

    def _make_lifecycle_metrics(self) -> None:
        self._loads = Counter(
            "modelmora_model_loads_total", "Loads.", ["model_id"], registry=self._registry
        )
        self._unloads = Counter(
            "modelmora_model_unloads_total",
            "Unloads, by reason.",
            ["model_id", "reason"],
            registry=self._registry,
        )
        self._evictions = Counter(
            "modelmora_model_evictions_total",
            "Models unloaded to make room for another.",
            registry=self._registry,
        )
        self._load_failures = Counter(
            "modelmora_model_load_failed_total",
            "Loads that failed.",
            ["model_id"],
            registry=self._registry,
        )

    def _on_inference(self, event: events.InferenceFinished) -> None:
        self._requests.labels(event.model_id, event.status).inc()
        self._duration.labels(event.model_id, event.task_type).observe(event.duration_seconds)
        if event.batch_size is not None:
            self._batch.labels(event.model_id).observe(event.batch_size)
        if event.status == "error":
            code = event.error_code or "INTERNAL_ERROR"
            self._failed.labels(event.model_id, event.protocol, code).inc()

    def _on_loaded(self, event: events.ModelLoaded) -> None:
        self._loads.labels(event.model_id).inc()

    def _on_unloaded(self, event: events.ModelUnloaded) -> None:
        self._unloads.labels(event.model_id, event.reason).inc()

    def _on_evicted(self, _: events.ModelEvicted) -> None:
        self._evictions.inc()

    def _on_load_failed(self, event: events.ModelLoadFailed) -> None:
        self._load_failures.labels(event.model_id).inc()


class _Gauges(Collector):
    """What is so now; asked for at each scrape, so it can never be stale."""

    def __init__(self, memory: MemoryView) -> None:
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        views = self._memory.loaded()
        budget = self._memory.budget_mb
        loaded = sum(view.state is ModelState.LOADED for view in views)
        yield _gauge("modelmora_models_loaded", "Models that are loaded.", loaded)
        yield _per_model(views)
        yield _gauge(
            "modelmora_memory_usage_percent",
            "Memory of models, of the budget.",
            100 * self._memory.used_mb / budget if budget else 0.0,
        )
        yield _gauge(
            "modelmora_system_memory_available_bytes",
            "Memory the machine could still give away.",
            psutil.virtual_memory().available,
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _per_model(views: Iterable[ResidentView]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "modelmora_model_memory_usage_bytes",
        "Memory that counts for a model: measured, or reserved while it loads.",
        labels=["model_id"],
    )
    usage: dict[str, float] = {}
    for view in views:  # two versions of a model may be in memory while one replaces the other
        if view.state in HOLDING_MEMORY:
            usage[view.model_id] = usage.get(view.model_id, 0.0) + view.memory_mb * _MB
    for model_id, size in usage.items():
        family.add_metric([model_id], size)
    return family
