"""The scheduler, its effects and the monitor on the real Triton."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

from controlplane import events
from controlplane.errors import LoadFailed, LoadTimeout
from controlplane.lifecycle import memory
from controlplane.lifecycle.effects import TritonEffects
from controlplane.lifecycle.monitor import Monitor
from controlplane.lifecycle.reconcile import unload_strays
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.state import ModelState
from controlplane.registry.model import Servable, TaskType
from controlplane.registry.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.triton

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
        self.effects = TritonEffects(client, triton.server, ModelRepository(triton.repository))
        self.scheduler = Scheduler(
            self.effects,
            bus,
            budget_mb=1000.0,
            max_models=2,
            load_timeout=20.0,
            record_memory=lambda _, mb: self.recorded.append(mb),
        )
        self.monitor = Monitor(self.scheduler, self.effects, idle_ttl=None)

    def servable(self, name: str) -> Servable:
        """The model `name` of the repository, with the manifest our publishing would write."""
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

    async def use(self, target: Servable) -> bytes:
        deadline = asyncio.get_running_loop().time() + 30
        async with self.scheduler.lease(target, deadline=deadline):
            outputs = await self.client.infer(
                *target.key,
                {"text_input": np.array([[b"hi"]], np.object_)},
                ["text_output"],
                timeout=10,
            )
            answer = outputs["text_output"][0, 0]
            assert isinstance(answer, bytes)
            return answer


@pytest.fixture
async def world(triton: BackgroundTriton, triton_client: TritonClient) -> AsyncIterator[World]:
    world = World(triton, triton_client)
    yield world
    await world.scheduler.close()


async def until(condition: object, seconds: float = 20.0) -> None:
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
    for _ in range(3):  # a failed check is repeated with every look
        await world.monitor.tick()
    await until(lambda: any(isinstance(e, events.ModelUnloaded) for e in world.told))


async def test_strays_of_ours_are_unloaded_and_others_left_alone(
    world: World, triton_client: TritonClient
) -> None:
    ours, other = world.triton.models.echo(), world.triton.models.echo()
    for name in (ours, other):
        await triton_client.load(name, timeout=20)
    assert await unload_strays(triton_client, {ours}) == [ours]
    ready = {entry.name for entry in await triton_client.index() if entry.state == "READY"}
    assert other in ready
    assert ours not in ready
