"""The scheduler, its effects and the monitor on the real Triton."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest

from controlplane import events
from controlplane.errors import LoadFailed, LoadTimeout, ServiceUnavailable
from controlplane.lifecycle import health, memory, unloading
from controlplane.lifecycle import scheduler as scheduler_module
from controlplane.lifecycle.effects import TritonEffects
from controlplane.lifecycle.memory_log import MemoryLog
from controlplane.lifecycle.monitor import Monitor
from controlplane.lifecycle.reconcile import Reconciler
from controlplane.lifecycle.sampler import Sampler
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.state import ModelState
from controlplane.registry.model import Servable, TaskType
from controlplane.registry.repository import ModelRepository
from controlplane.triton.failures import TritonError
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.lifecycle.resident import Resident
    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.triton

# Seconds; whatever is waited for to its end takes as long.
LOAD_TIMEOUT = 20.0

E = TypeVar("E", bound=events.DomainEvent)

MANIFEST = {
    "max_batch_size": 8,
    "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
    "outputs": [
        {"name": "text_output", "datatype": "BYTES", "shape": [1]},
        {"name": "number_output", "datatype": "FP32", "shape": [-1]},
    ],
}


class World:
    """A scheduler over the session's server."""

    def __init__(self, triton: BackgroundTriton, client: TritonClient) -> None:
        self.triton = triton
        self.client = client
        self.recorded: list[float] = []
        self.told: list[events.DomainEvent] = []
        bus = events.EventBus()
        bus.subscribe(events.DomainEvent, self.told.append)
        self.written: list[tuple[str, float, str]] = []
        self.log = MemoryLog(
            lambda version_id, usage, _, reason: self.written.append(
                (version_id, usage.used_mb, reason)
            )
        )
        self.available_mb = 1000.0
        self.effects = TritonEffects(
            client,
            triton.server,
            ModelRepository(triton.repository),
            on_load=self.log.loaded,
        )
        self.scheduler = Scheduler(
            self.effects,
            bus,
            budget_mb=1000.0,
            max_models=2,
            load_timeout=LOAD_TIMEOUT,
            record_memory=lambda _, mb: self.recorded.append(mb),
        )
        self.sampler = Sampler(
            self.scheduler,
            self.effects,
            bus,
            self.log,
            machine_mb=2000.0,
            reserve_mb=100.0,
            available_mb=lambda: self.available_mb,
        )
        self.monitor = Monitor(self.scheduler, self.effects, idle_ttl=None, sampler=self.sampler)
        self.ours: set[str] = set()
        self.reconciler = Reconciler(
            client, self.effects, self.scheduler, lambda: self.ours, is_up=lambda: True
        )

    def servable(self, name: str) -> Servable:
        """The model `name` of the repository, with the manifest our publishing would write."""
        self.ours.add(name)
        home = self.triton.repository / name
        (home / "1" / "manifest.json").write_text(json.dumps(MANIFEST))
        shutil.copy(home / "config.pbtxt", home / "1" / "config.pbtxt")
        return Servable(
            model_id=name.replace("--", "/"),
            version="main",
            version_id=name,
            task_type=TaskType.TXT2EMBED,
            triton_name=name,
            triton_version=1,
            need_mb=50.0,
        )

    def resident(self, target: Servable) -> Resident:
        (found,) = [r for r in self.scheduler.residents() if r.servable.key == target.key]
        return found

    def seen(self, kind: type[E]) -> list[E]:
        return [event for event in self.told if isinstance(event, kind)]

    async def use(self, target: Servable) -> bytes:
        deadline = asyncio.get_running_loop().time() + 30
        async with self.scheduler.lease(target, deadline=deadline):
            outputs = await self.client.infer(
                *target.key,
                {"text_input": np.array([[b"hi"]], np.object_)},
                ["text_output"],
                timeout=60,
            )
            answer = outputs["text_output"][0, 0]
            assert isinstance(answer, bytes)
            return answer


@pytest.fixture
async def world(triton: BackgroundTriton, triton_client: TritonClient) -> AsyncIterator[World]:
    world = World(triton, triton_client)
    yield world
    await world.monitor.stop()
    await world.scheduler.close()


async def until(condition: object, seconds: float = 60.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline, "the condition never came true"
        await asyncio.sleep(0.01)


async def test_the_first_request_loads_proves_and_measures_the_model(world: World) -> None:
    target = world.servable(world.triton.models.echo())
    assert await world.use(target) == b"hi"
    shown = world.scheduler.view(target.model_id)
    assert shown is not None
    assert shown.state is ModelState.LOADED
    assert shown.process_id is not None
    assert memory.alive(shown.process_id)
    assert shown.measured
    assert 5 < shown.memory_mb < 500
    assert world.recorded == [shown.memory_mb]


async def test_an_unload_returns_when_the_process_has_ended(world: World) -> None:
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    shown = world.scheduler.view(target.model_id)
    assert shown is not None
    assert shown.process_id is not None
    await world.scheduler.unload(target.model_id)
    assert not memory.alive(shown.process_id)


async def test_a_third_model_evicts_the_least_recently_used(world: World) -> None:
    targets = [world.servable(world.triton.models.echo()) for _ in range(3)]
    for target in (targets[0], targets[1], targets[0], targets[2]):
        assert await world.use(target) == b"hi"
    held = {shown.triton_name for shown in world.scheduler.loaded()}
    assert held == {targets[0].triton_name, targets[2].triton_name}


async def test_the_reason_of_a_failed_load_reaches_its_callers(world: World) -> None:
    target = world.servable(world.triton.models.failing("no weights here"))
    with pytest.raises(LoadFailed, match="no weights here"):
        await world.use(target)
    shown = world.scheduler.view(target.model_id)
    assert shown is not None
    assert shown.state is ModelState.FAILED
    assert "no weights here" in (shown.health_error or "")


async def test_a_model_that_fails_its_test_inference_does_not_stay(world: World) -> None:
    name = world.triton.models.write(execute="raise RuntimeError('cannot compute')")
    target = world.servable(name)
    with pytest.raises(LoadFailed, match="cannot compute"):
        await world.use(target)
    assert world.triton.server.stub_pids(name, 1) == []


async def test_a_model_that_answers_nan_is_refused(world: World) -> None:
    name = world.triton.models.write(execute="number = number * np.nan")
    with pytest.raises(LoadFailed, match="not finite"):
        await world.use(world.servable(name))


async def test_a_load_that_hangs_is_ended_and_the_server_goes_on(world: World) -> None:
    hanging = world.servable(world.triton.models.hanging())
    with pytest.raises(LoadTimeout):
        await world.effects.load(hanging, timeout=1.0)
    assert world.triton.server.stub_pids(*hanging.key) == []
    assert await world.use(world.servable(world.triton.models.echo())) == b"hi"


async def test_a_dead_stub_is_noticed_and_the_next_request_is_served(world: World) -> None:
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    shown = world.scheduler.view(target.model_id)
    assert shown is not None
    assert shown.process_id is not None
    world.monitor.start()
    os.kill(shown.process_id, signal.SIGKILL)
    await until(lambda: any(isinstance(e, events.ModelHealthChanged) for e in world.told))
    assert await world.use(target) == b"hi"
    await world.monitor.stop()
    reasons = [e.reason for e in world.told if isinstance(e, events.ModelUnloaded)]
    assert reasons == ["unhealthy_restart"]


async def test_idle_models_leave_after_their_time(world: World) -> None:
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    monitor = Monitor(world.scheduler, world.effects, idle_ttl=0.001)
    await asyncio.sleep(0.01)
    await monitor.tick()
    await until(lambda: world.scheduler.view(target.model_id) is None)


async def test_a_suspected_model_is_probed_at_once(world: World) -> None:
    name = world.triton.models.write(
        initialize="self.calls = 0",
        execute="""
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError('worn out')
        """,
    )
    target = world.servable(name)
    with pytest.raises(Exception, match="worn out"):
        await world.use(target)
    world.monitor.suspect(target)
    world.monitor.start()  # a failed check is repeated with every look
    await until(lambda: world.seen(events.ModelUnloaded) != [])
    assert world.seen(events.ModelUnloaded)[0].reason == "unhealthy_restart"


async def test_strays_of_ours_are_unloaded_and_others_left_alone(
    world: World, triton_client: TritonClient
) -> None:
    ours, other = world.servable(world.triton.models.echo()), world.triton.models.echo()
    for name in (ours.triton_name, other):
        await triton_client.load(name, timeout=60)
    found = await world.reconciler.run_once()
    assert found.strays == [ours.key]
    ready = {entry.name for entry in await triton_client.index() if entry.state == "READY"}
    assert other in ready
    assert ours.triton_name not in ready
    assert (await world.reconciler.run_once()).strays == []


async def test_a_model_unloaded_behind_our_back_is_lost_and_loaded_by_its_next_request(
    world: World, triton_client: TritonClient
) -> None:
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    await triton_client.unload(target.triton_name, timeout=60)
    assert (await world.reconciler.run_once()).lost == [target.key]
    assert world.scheduler.view(target.model_id) is None
    assert [e.reason for e in world.seen(events.ModelUnloaded)] == ["unloaded_elsewhere"]
    assert await world.use(target) == b"hi"
    assert (await world.reconciler.run_once()) == ([], [])


async def test_clients_who_talk_to_triton_directly_keep_a_model_from_being_idle(
    world: World, triton_client: TritonClient
) -> None:
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    resident = world.resident(target)
    await world.effects.probe(target)
    await world.reconciler.run_once()
    before = resident.last_used
    await world.effects.probe(target)  # ours, and no use
    await world.reconciler.run_once()
    assert resident.last_used == before
    text = {"text_input": np.array([[b"hi"]], np.object_)}
    await triton_client.infer(*target.key, text, ["text_output"], timeout=60)

    async def noticed() -> bool:  # Triton counts after it has answered
        await world.reconciler.run_once()
        return resident.last_used > before

    await eventually(noticed)
    noted = resident.last_used
    await world.reconciler.run_once()
    assert resident.last_used == noted


async def test_a_dead_process_is_noticed_within_two_seconds(world: World) -> None:
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    world.monitor.start()
    await asyncio.sleep(0)
    await world.monitor.tick()
    process_id = world.resident(target).process_id
    assert process_id is not None
    loop = asyncio.get_running_loop()
    killed = loop.time()
    os.kill(process_id, signal.SIGKILL)
    await until(lambda: world.seen(events.ModelHealthChanged) != [], seconds=5.0)
    assert loop.time() - killed < 2.0


async def test_a_model_that_hangs_is_killed_and_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.5)
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    process_id = world.resident(target).process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    request = asyncio.ensure_future(world.use(target))
    world.monitor.suspect(target)
    world.monitor.start()
    with pytest.raises(TritonError):  # it was running in the process
        await request
    await until(lambda: world.seen(events.ModelHealthChanged) != [])
    server, began = world.triton.server.pid, asyncio.get_running_loop().time()
    assert await world.use(target) == b"hi"
    assert asyncio.get_running_loop().time() - began < LOAD_TIMEOUT
    assert not memory.alive(process_id)
    assert world.seen(events.ModelUnloaded)[0].reason == "unhealthy_restart"
    assert world.triton.server.pid == server  # other models were not disturbed


async def test_a_process_killed_under_requests_does_not_take_the_server_down(
    world: World,
) -> None:
    """Triton never finishes unloading a model whose requests died with its process."""
    target = world.servable(world.triton.models.slow(0.2))
    await world.use(target)
    server = world.triton.server.pid
    world.monitor.start()
    for _ in range(2):  # what is left of the first time must not matter the second time
        process_id = world.resident(target).process_id
        assert process_id is not None
        requests = [asyncio.ensure_future(world.use(target)) for _ in range(8)]
        await asyncio.sleep(0.1)
        os.kill(process_id, signal.SIGKILL)
        await asyncio.gather(*requests, return_exceptions=True)
        began = asyncio.get_running_loop().time()
        assert await world.use(target) == b"hi"
        assert asyncio.get_running_loop().time() - began < LOAD_TIMEOUT
    assert world.triton.server.pid == server
    await world.scheduler.unload(target.model_id)


async def test_a_model_that_computes_for_long_is_not_taken_for_one_that_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.3)
    name = world.triton.models.write(
        execute="""
        end = time.monotonic() + (3.0 if b"long" in text.ravel()[0] else 0.0)
        while time.monotonic() < end:
            pass
        """
    )
    target = world.servable(name)
    await world.use(target)
    deadline = asyncio.get_running_loop().time() + 30
    async with world.scheduler.lease(target, deadline=deadline):
        text = {"text_input": np.array([[b"long"]], np.object_)}
        long = asyncio.ensure_future(
            world.client.infer(*target.key, text, ["text_output"], timeout=60)
        )
        world.monitor.start()
        while not long.done():
            world.monitor.suspect(target)
            await asyncio.sleep(0.05)
    assert (await long)["text_output"].tolist() == [[b"long"]]
    assert world.seen(events.ModelHealthChanged) == []
    assert world.resident(target).state is ModelState.LOADED


async def test_an_unload_kills_a_process_that_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unloading, "PROCESS_END_TIMEOUT", 1.0)
    target = world.servable(world.triton.models.echo())
    await world.use(target)
    process_id = world.resident(target).process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    await world.scheduler.unload(target.model_id)
    assert not memory.alive(process_id)
    assert await world.use(target) == b"hi"


async def test_a_load_that_hangs_does_not_hold_up_the_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "CLOSE_PATIENCE", 0.2)
    hanging = world.servable(world.triton.models.hanging())
    request = asyncio.ensure_future(world.use(hanging))
    await eventually(lambda: world.triton.server.stub_pids(*hanging.key))
    await asyncio.wait_for(world.scheduler.close(), 5.0)
    with pytest.raises(ServiceUnavailable):
        await request
    assert world.triton.server.kill_stubs(*hanging.key) == 1


async def test_growth_is_measured_recorded_and_reported(world: World) -> None:
    name = world.triton.models.write(
        initialize="self.hoard = []",
        execute="self.hoard.append(b'x' * 60_000_000 if b'more' in text.ravel()[0] else b'')",
    )
    target = world.servable(name)
    await world.use(target)
    ((version_id, at_load, reason),) = world.written
    assert (version_id, reason) == (target.version_id, "load")
    await world.sampler.measure()
    assert len(world.written) == 1  # nothing new
    text = {"text_input": np.array([[b"more"]], np.object_)}
    await world.client.infer(*target.key, text, ["text_output"], timeout=60)
    await world.sampler.measure()
    (_, after, reason) = world.written[-1]
    assert reason == "change"
    assert 50 < after - at_load < 80
    assert world.scheduler.used_mb == after
    (told,) = world.seen(events.MemoryThresholdExceeded)
    assert (told.scope, told.model_id) == ("model", target.model_id)
    assert told.threshold_mb == 60.0  # 1.2 times what was reserved
    await world.sampler.measure()
    assert len(world.seen(events.MemoryThresholdExceeded)) == 1  # told once


async def test_idle_models_leave_one_by_one_when_the_machine_runs_short(world: World) -> None:
    first, second = (world.servable(world.triton.models.echo()) for _ in range(2))
    for target in (first, second):
        await world.use(target)
    world.available_mb = 50.0
    world.sampler.relieve()
    world.sampler.relieve()  # the first has not left yet
    assert world.resident(first).state is ModelState.UNLOADING
    assert world.resident(second).state is ModelState.LOADED
    (told,) = world.seen(events.MemoryThresholdExceeded)
    assert (told.scope, told.used_mb, told.threshold_mb) == ("machine", 1950.0, 1900.0)
    await until(lambda: world.resident(first).state is ModelState.UNLOADED)
    assert world.seen(events.ModelUnloaded)[0].reason == "memory_pressure"
    world.available_mb = 150.0
    world.sampler.relieve()
    assert world.resident(second).state is ModelState.LOADED


ENSEMBLE = """
name: "{name}"
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "text_input" data_type: TYPE_STRING dims: [1] }} ]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [1] }},
  {{ name: "number_output" data_type: TYPE_FP32 dims: [-1] }}
]
ensemble_scheduling {{ step [ {{
  model_name: "{inner}" model_version: -1
  input_map {{ key: "text_input" value: "text_input" }}
  output_map [
    {{ key: "text_output" value: "text_output" }},
    {{ key: "number_output" value: "number_output" }}
  ]
}} ] }}
version_policy {{ specific {{ versions: [1] }} }}
"""


async def test_a_model_inside_the_server_is_measured_by_the_servers_growth(world: World) -> None:
    inner = world.triton.models.echo()
    await world.client.load(inner, timeout=60)
    name = f"{inner}-ensemble"
    (world.triton.repository / name / "1").mkdir(parents=True)
    config = ENSEMBLE.format(name=name, inner=inner)
    (world.triton.repository / name / "config.pbtxt").write_text(config)
    target = world.servable(name)
    assert await world.use(target) == b"hi"
    shown = world.scheduler.view(target.model_id)
    assert shown is not None
    assert shown.process_id is None
    assert shown.measured
    assert shown.memory_mb < 40.0  # an ensemble is nothing but a plan
    await world.scheduler.unload(target.model_id)
