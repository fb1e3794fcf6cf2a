"""Prometheus metrics (domain §5.2): counters from events, gauges read when they are asked for.

Triton exports its own figures of its queues and executions; these tell of the control plane.
Labels hold ids of registered models only, never text that a client made up.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import platform
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from controlplane import events
from controlplane.lifecycle.history import EVICTIONS
from controlplane.lifecycle.memory import device
from controlplane.lifecycle.sampler import SCOPES
from controlplane.observability.gauges import Gauges, Still

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.observability.gauges import MemoryView

M = TypeVar("M", Counter, Histogram)

# From a single short text on an idle machine to a first request that loads a large model.
_DURATION_BUCKETS = (
    *(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
# From a tiny model out of the page cache to a large one from a cold disk.
_LOAD_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


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
        self._memory = memory
        self._writing, self._gc_was_on = 0, True
        ProcessCollector(registry=self._registry)
        self._healing: set[str] = set()
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}
        bus.subscribe(events.InferenceFinished, self._on_inference)
        bus.subscribe(events.ModelLoaded, self._on_loaded)
        bus.subscribe(events.ModelUnloaded, self._on_unloaded)
        bus.subscribe(events.ModelLoadFailed, self._on_load_failed)
        bus.subscribe(events.ModelHealthChanged, self._on_health)
        bus.subscribe(events.ModelUnregistered, self._on_unregistered)
        bus.subscribe(events.TritonRestored, self._on_restored)
        bus.subscribe(events.MemoryThresholdExceeded, self._on_threshold)

    async def render(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its content type.

        Written in a thread, from a picture of what is in memory now: with a thousand models that
        takes a quarter of a second, in which no request would be served.
        """
        still = Still.of(self._memory)
        with self._without_gc():
            return await asyncio.to_thread(self._text, still), CONTENT_TYPE_LATEST

    @contextlib.contextmanager
    def _without_gc(self) -> Iterator[None]:
        """Thousands of short-lived objects make the collector look through all there are.

        It holds the interpreter for as long as that takes (0.1 s), whichever thread has caused it.
        Nothing that is made here has cycles.
        """
        if not self._writing:
            self._gc_was_on = gc.isenabled()
            gc.disable()
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            if not self._writing and self._gc_was_on:
                gc.enable()

    def text(self) -> bytes:
        """The same at once; blocks."""
        return self._text(Still.of(self._memory))

    def _text(self, memory: Still) -> bytes:
        now = CollectorRegistry()
        now.register(Gauges(memory))
        return generate_latest(self._registry) + generate_latest(now)

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
            "modelmora_model_loads_total",
            "Loads, by outcome: success or failed.",
            ["model_id", "outcome"],
            registry=self._registry,
        )
        self._load_duration = Histogram(
            "modelmora_model_load_duration_seconds",
            "From Triton's call to the answered test inference, of loads that succeeded.",
            ["model_id"],
            buckets=_LOAD_BUCKETS,
            registry=self._registry,
        )
        self._unloads = Counter(
            "modelmora_model_unloads_total",
            "Unloads, by reason.",
            ["model_id", "reason"],
            registry=self._registry,
        )
        self._evictions = Counter(
            "modelmora_model_evictions_total",
            "Models unloaded for want of memory or because they were idle, by reason.",
            ["reason"],
            registry=self._registry,
        )
        for reason in sorted(EVICTIONS):  # at 0, so that the first one is an increase
            self._evictions.labels(reason)
        self._exceeded = Counter(
            "modelmora_memory_threshold_exceeded_total",
            "Times that memory went beyond a limit: of a model, of the budget, of the machine.",
            ["scope"],
            registry=self._registry,
        )
        for scope in sorted(SCOPES):  # at 0, so that the first one is an increase
            self._exceeded.labels(scope)
        self._load_failures = Counter(
            "modelmora_model_load_failed_total",
            "Loads that failed.",
            ["model_id"],
            registry=self._registry,
        )
        self._make_health_metrics()

    def _make_health_metrics(self) -> None:
        self._unhealthy = Counter(
            "modelmora_model_unhealthy_total",
            "Times that a model did not answer and was taken out of service.",
            ["model_id"],
            registry=self._registry,
        )
        self._healed = Counter(
            "modelmora_model_healed_total",
            "Times that such a model was loaded again and answered.",
            ["model_id"],
            registry=self._registry,
        )
        self._restarts = Counter(
            "modelmora_triton_restarts_total",
            "Times that Triton came back after it was lost.",
            registry=self._registry,
        )

    def _on_inference(self, event: events.InferenceFinished) -> None:
        model_id, child = event.model_id, self._child
        child(self._requests, model_id, event.status).inc()
        child(self._duration, model_id, event.task_type).observe(event.duration_seconds)
        if event.batch_size is not None:
            child(self._batch, model_id).observe(event.batch_size)
        if event.status == "error":
            code = event.error_code or "INTERNAL_ERROR"
            child(self._failed, model_id, event.protocol, code).inc()

    def _child(self, metric: M, *labels: str) -> M:
        """What `metric.labels` gives; every request asks, and that takes a lock and a search.

        The first label is the model's id.
        """
        try:
            found: M = self._children[metric, labels]
        except KeyError:
            found = self._children[metric, labels] = metric.labels(*labels)
        return found

    def _on_loaded(self, event: events.ModelLoaded) -> None:
        self._loads.labels(event.model_id, "success").inc()
        self._load_duration.labels(event.model_id).observe(event.load_seconds)
        if event.model_id in self._healing:
            self._healing.discard(event.model_id)
            self._healed.labels(event.model_id).inc()

    def _on_unloaded(self, event: events.ModelUnloaded) -> None:
        self._unloads.labels(event.model_id, event.reason).inc()
        if event.reason in EVICTIONS:
            self._evictions.labels(event.reason).inc()

    def _on_load_failed(self, event: events.ModelLoadFailed) -> None:
        self._loads.labels(event.model_id, "failed").inc()
        self._load_failures.labels(event.model_id).inc()

    def _on_health(self, event: events.ModelHealthChanged) -> None:
        if event.new_state == "unhealthy":
            self._healing.add(event.model_id)
            self._unhealthy.labels(event.model_id).inc()

    def _on_threshold(self, event: events.MemoryThresholdExceeded) -> None:
        self._exceeded.labels(event.scope).inc()

    def _on_restored(self, _: events.TritonRestored) -> None:
        self._restarts.inc()

    def _on_unregistered(self, event: events.ModelUnregistered) -> None:
        """Labels are those of registered models: a thousand that came and went must not stay."""
        self._healing.discard(event.model_id)
        self._children = {
            key: child for key, child in self._children.items() if key[1][0] != event.model_id
        }
        for metric in (
            *(self._requests, self._failed, self._duration, self._batch),
            *(self._loads, self._load_duration, self._load_failures),
            *(self._unloads, self._unhealthy, self._healed),
        ):
            metric.remove_by_labels({"model_id": event.model_id})
