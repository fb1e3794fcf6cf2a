"""Metrics: counters follow events, gauges follow the scheduler, names are the documented ones."""

from __future__ import annotations

import asyncio
import gc

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane import events
from controlplane.lifecycle.queue_view import WaitingView
from controlplane.lifecycle.resident import ResidentView
from controlplane.lifecycle.state import ModelState
from controlplane.observability.metrics import Metrics

MB = 1024 * 1024


class Memory:
    """A scheduler that is only looked at."""

    used_mb = 120.0
    budget_mb = 480.0
    max_models = 7
    server_up = True

    def __init__(self):
        self.views = ()
        self.queue = ()

    def loaded(self):
        return tuple(v for v in self.views if v.state is not ModelState.UNLOADED)

    def every_view(self):
        return self.views

    def waiting(self):
        return self.queue


def view(model_id, state=ModelState.LOADED, memory_mb=100.0, version="main", **more):
    return ResidentView(
        model_id=model_id,
        version=version,
        triton_name=model_id.replace("/", "--"),
        triton_version=1,
        state=state,
        memory_mb=memory_mb,
        peak_mb=memory_mb,
        measured=True,
        device="cpu",
        request_count=0,
        active_requests=0,
        waiting_requests=0,
        healthy=True,
        consecutive_failures=0,
        **more,
    )


@pytest.fixture
def bus():
    return events.EventBus()


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def metrics(bus, memory):
    return Metrics(bus, memory, version="9.9")


def samples(metrics):
    text, content_type = asyncio.run(metrics.render())
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_names_of_the_specification_exist(bus, memory, metrics):
    told = {"model_id": "a/b", "version": "main"}
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.ModelUnloaded(reason="manual", uptime_seconds=1, **told))
    bus.publish(events.ModelEvicted(freed_mb=1, **told))
    bus.publish(events.ModelLoadFailed(error_message="x", **told))
    finish(bus, status="error", error_code="INFERENCE_FAILED")
    memory.views = (view("a/b"),)
    assert {
        "modelmora_requests_total",
        "modelmora_inference_duration_seconds_bucket",
        "modelmora_requests_failed_total",
        "modelmora_models_loaded",
        "modelmora_model_memory_usage_bytes",
        "modelmora_memory_usage_percent",
        "modelmora_model_loads_total",
        "modelmora_model_unloads_total",
        "modelmora_model_evictions_total",
        "modelmora_model_load_failed_total",
        "modelmora_system_memory_available_bytes",
        "modelmora_service_info",
        "process_resident_memory_bytes",
    } <= {name for name, _ in samples(metrics)}


def finish(bus, **changes):
    values = {
        "model_id": "a/b",
        "task_type": "txt2embed",
        "protocol": "rest",
        "status": "success",
        "duration_seconds": 0.02,
        "batch_size": 3,
    }
    bus.publish(events.InferenceFinished(**(values | changes)))


def test_requests_are_counted_by_outcome(bus, metrics):
    finish(bus)
    finish(bus, protocol="v2_grpc", batch_size=None)
    finish(bus, protocol="v2_http", status="error", error_code="INVALID_INPUT")
    found = samples(metrics)
    model = ("model_id", "a/b")
    assert found["modelmora_requests_total", (model, ("status", "success"))] == 2
    assert found["modelmora_requests_total", (model, ("status", "error"))] == 1
    failed = (("code", "INVALID_INPUT"), ("endpoint", "v2_http"), model)
    assert found["modelmora_requests_failed_total", failed] == 1
    duration = (model, ("task_type", "txt2embed"))
    assert found["modelmora_inference_duration_seconds_count", duration] == 3
    assert found["modelmora_inference_duration_seconds_sum", duration] == pytest.approx(0.06)
    assert found["modelmora_batch_size_sum", (model,)] == 6


def test_lifecycle_is_counted(bus, metrics):
    told = {"model_id": "a/b", "version": "main"}
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.ModelUnloaded(reason="lru_eviction", uptime_seconds=1, **told))
    bus.publish(events.ModelEvicted(freed_mb=1, **told))
    bus.publish(events.ModelLoadFailed(error_message="x", **told))
    found = samples(metrics)
    model = ("model_id", "a/b")
    success, failed = (model, ("outcome", "success")), (model, ("outcome", "failed"))
    assert found["modelmora_model_loads_total", success] == 1
    assert found["modelmora_model_loads_total", failed] == 1
    assert found["modelmora_model_load_duration_seconds_count", (model,)] == 1
    assert found["modelmora_model_unloads_total", (model, ("reason", "lru_eviction"))] == 1
    assert found["modelmora_model_evictions_total", (("reason", "lru_eviction"),)] == 1
    assert found["modelmora_model_evictions_total", (("reason", "idle_ttl"),)] == 0
    assert found["modelmora_model_load_failed_total", (model,)] == 1


def test_gauges_are_read_when_asked(memory, metrics):
    assert samples(metrics)["modelmora_models_loaded", ()] == 0
    memory.views = (
        view("a/b"),
        view("a/b", ModelState.UNLOADING, 50.0, version="old"),
        view("c/d", ModelState.LOADING, 20.0),
        view("e/f", ModelState.FAILED, 99.0),
    )
    found = samples(metrics)
    assert found["modelmora_models_loaded", ()] == 1
    assert found["modelmora_model_memory_usage_bytes", (("model_id", "a/b"),)] == 150 * MB
    assert found["modelmora_model_memory_usage_bytes", (("model_id", "c/d"),)] == 20 * MB
    assert ("modelmora_model_memory_usage_bytes", (("model_id", "e/f"),)) not in found
    assert found["modelmora_memory_usage_percent", ()] == 25.0
    assert found["modelmora_system_memory_available_bytes", ()] > 0


def test_service_info(metrics):
    ((labels, value),) = [
        (dict(labels), value)
        for (name, labels), value in samples(metrics).items()
        if name == "modelmora_service_info"
    ]
    assert value == 1
    assert set(labels) == {"version", "python_version", "gpu_enabled"}
    assert labels["version"] == "9.9"


def test_two_services_in_one_process_do_not_share_numbers(bus, memory, metrics):
    other = Metrics(events.EventBus(), memory)
    finish(bus)
    assert not any(name == "modelmora_requests_total" for name, _ in samples(other))


def test_hits_misses_and_memory_are_read_from_the_books(memory, metrics):
    memory.views = (
        view(
            "a/b", hits=5, misses=2, coalesced=1, estimated_mb=90.0, last_used_at=events.utc_now()
        ),
        view("a/b", ModelState.UNLOADED, 0.0, version="old", hits=10, misses=1),
        view("c/d", ModelState.LOADING, 20.0, estimated_mb=20.0),
    )
    memory.queue = (waiting("c/d", 1), waiting("c/d", 3), waiting("c/d", 3))
    found = samples(metrics)
    model = ("model_id", "a/b")
    assert found["modelmora_model_cache_hits_total", (model,)] == 15
    assert found["modelmora_model_cache_misses_total", (model,)] == 3
    assert found["modelmora_model_coalesced_requests_total", (model,)] == 1
    assert found["modelmora_model_memory_estimated_bytes", (model,)] == 90 * MB
    assert found["modelmora_model_memory_measured_bytes", (model,)] == 100 * MB
    assert found["modelmora_model_memory_peak_bytes", (model,)] == 100 * MB
    assert found["modelmora_model_state", (model, ("state", "loaded"))] == 1
    assert found["modelmora_memory_budget_bytes", ()] == 480 * MB
    assert found["modelmora_memory_used_bytes", ()] == 120 * MB
    assert found["modelmora_memory_reserved_bytes", ()] == 20 * MB
    assert found["modelmora_models_max", ()] == 7
    assert found["modelmora_triton_up", ()] == 1
    assert found["modelmora_queue_depth", (("priority", "medium"),)] == 2
    assert found["modelmora_queue_depth", (("priority", "low"),)] == 0


def waiting(model_id, priority):
    return WaitingView(
        model_id=model_id, version="main", priority=priority, waits_for="load", waited_seconds=1.0
    )


def test_healing_and_restarts_are_counted(bus, metrics):
    told = {"model_id": "a/b", "version": "main"}
    bus.publish(events.ModelHealthChanged(previous_state="loaded", new_state="unhealthy", **told))
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.TritonLost())
    bus.publish(events.TritonRestored())
    found = samples(metrics)
    assert found["modelmora_model_unhealthy_total", (("model_id", "a/b"),)] == 1
    assert found["modelmora_model_healed_total", (("model_id", "a/b"),)] == 1
    assert found["modelmora_triton_restarts_total", ()] == 1


def test_limits_that_were_exceeded_are_counted_by_scope(bus, metrics):
    assert (
        samples(metrics)["modelmora_memory_threshold_exceeded_total", (("scope", "budget"),)] == 0
    )
    for _ in range(2):
        event = events.MemoryThresholdExceeded(scope="budget", used_mb=2, threshold_mb=1)
        bus.publish(event)
    assert (
        samples(metrics)["modelmora_memory_threshold_exceeded_total", (("scope", "budget"),)] == 2
    )


async def test_a_scrape_of_a_thousand_models_leaves_the_loop_to_others(bus, memory, metrics):
    memory.views = tuple(view(f"o/m{number}") for number in range(1000))
    rendering = asyncio.create_task(metrics.render())
    turns = 0
    while not rendering.done():
        assert not gc.isenabled() or not turns
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10  # in one go it would be two or three
    assert gc.isenabled()
    text, _ = await rendering
    assert text.count(b"o/m999") == metrics.text().count(b"o/m999") > 0


async def test_scrapes_at_a_time_turn_the_collector_on_again(memory, metrics):
    memory.views = tuple(view(f"o/m{number}") for number in range(100))
    await asyncio.gather(*(metrics.render() for _ in range(4)))
    assert gc.isenabled()


def test_a_removed_model_leaves_no_labels(bus, metrics):
    told = {"model_id": "a/b", "version": "main"}
    bus.publish(events.ModelLoaded(memory_mb=1, load_seconds=1, **told))
    bus.publish(events.ModelUnloaded(reason="manual", uptime_seconds=1, **told))
    bus.publish(events.ModelLoadFailed(error_message="x", **told))
    bus.publish(events.ModelHealthChanged(previous_state="loaded", new_state="unhealthy", **told))
    finish(bus, status="error")
    finish(bus, model_id="c/d")
    bus.publish(events.ModelUnregistered(model_id="a/b"))
    text = metrics.text().decode()
    assert '"a/b"' not in text
    assert '"c/d"' in text


def test_a_model_that_was_removed_and_came_back_counts_from_nothing(bus, metrics):
    finish(bus)
    finish(bus)
    bus.publish(events.ModelUnregistered(model_id="a/b"))
    finish(bus)
    counted = 'modelmora_requests_total{model_id="a/b",status="success"} 1.0'
    assert counted in metrics.text().decode()
