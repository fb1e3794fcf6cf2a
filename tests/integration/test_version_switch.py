"""Switching the current version of a loaded model on the real Triton, under load."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from controlplane import events
from controlplane.errors import LoadFailed
from controlplane.lifecycle import memory
from controlplane.lifecycle.effects import TritonEffects
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.lifecycle.switch import SwitchMode
from controlplane.registry.model import Servable, TaskType
from controlplane.registry.model_py import precompile
from controlplane.registry.repository import ModelRepository
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.triton

MANIFEST = {
    "max_batch_size": 8,
    "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
    "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1]}],
}


class World:
    """A scheduler over the session's server, and clients that name no version."""

    def __init__(
        self, triton: BackgroundTriton, client: TritonClient, budget_mb: float = 1000.0
    ) -> None:
        self.triton, self.client = triton, client
        self.told: list[events.DomainEvent] = []
        bus = events.EventBus()
        bus.subscribe(events.DomainEvent, self.told.append)
        effects = TritonEffects(client, triton.server, ModelRepository(triton.repository))
        self.scheduler = Scheduler(
            effects, bus, budget_mb=budget_mb, max_models=4, load_timeout=60.0
        )
        self.current = 0
        self.answers: list[bytes] = []
        self.failures: list[BaseException] = []

    def add(self, version: int, name: str | None = None, execute: str = "", **code: str) -> str:
        """Publish a version that answers with its number."""
        execute = execute or f"text = np.full_like(text, b'v{version}')"
        name = self.triton.models.write(name, version=version, execute=execute, **code)
        home = self.triton.repository / name
        (home / str(version) / "manifest.json").write_text(json.dumps(MANIFEST))
        shutil.copy(home / "config.pbtxt", home / str(version) / "config.pbtxt")
        precompile(home / str(version) / "model.py")
        return name

    def servable(self, name: str, version: int, *, floating: bool = False) -> Servable:
        return Servable(
            model_id=name.replace("--", "/"),
            version=f"v{version}",
            version_id=f"{name}-{version}",
            task_type=TaskType.TXT2EMBED,
            triton_name=name,
            triton_version=version,
            need_mb=50.0,
            floating=floating,
        )

    async def ask(self, name: str) -> bytes:
        target = self.servable(name, self.current, floating=True)
        deadline = asyncio.get_running_loop().time() + 60
        async with self.scheduler.lease(target, deadline=deadline) as leased:
            outputs = await self.client.infer(
                *leased.key,
                {"text_input": np.array([[b"hi"]], np.object_)},
                ["text_output"],
                timeout=60,
            )
        answer = outputs["text_output"][0, 0]
        assert isinstance(answer, bytes)
        return answer

    async def use(self, name: str, version: int) -> SwitchMode:
        return await self.scheduler.switch(
            lambda: self.servable(name, self.current),
            self.servable(name, version),
            deadline=asyncio.get_running_loop().time() + 60,
            commit=lambda: setattr(self, "current", version),
        )

    @asynccontextmanager
    async def load_on(self, name: str, clients: int = 6) -> AsyncIterator[None]:
        """Clients that ask on and on; what they get is in `answers` and `failures`."""
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                try:
                    self.answers.append(await self.ask(name))
                except Exception as error:  # noqa: BLE001 whatever it is, it is a lost request
                    self.failures.append(error)
                    return

        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = len(self.answers) + count
        await eventually(lambda: len(self.answers) >= wanted or self.failures)

    def pid(self, name: str) -> int | None:
        shown = self.scheduler.view(name.replace("--", "/"))
        return shown.process_id if shown else None

    def unloads(self) -> list[tuple[str, str]]:
        told = (e for e in self.told if isinstance(e, events.ModelUnloaded))
        return [(e.version, e.reason) for e in told]


@pytest.fixture
async def world(triton: BackgroundTriton, triton_client: TritonClient) -> AsyncIterator[World]:
    world = World(triton, triton_client)
    yield world
    await world.scheduler.close()


async def test_ten_switches_under_load_lose_no_request(world: World) -> None:
    name = world.add(1)
    world.current = 1
    async with world.load_on(name):
        await eventually(lambda: world.answers)
        world.add(2, name)
        for turn in range(10):
            assert await world.use(name, 2 - turn % 2) is SwitchMode.LIVE
            await world.more(20)
    assert world.failures == []
    assert set(world.answers) == {b"v1", b"v2"}
    assert [v.version for v in world.scheduler.loaded()] == ["v1"]
    assert len(world.unloads()) == 10
    assert {reason for _, reason in world.unloads()} == {"version_switch"}


async def test_the_old_version_runs_untouched_while_the_new_one_is_loaded(world: World) -> None:
    name = world.add(1)
    world.current = 1
    await world.ask(name)
    old = world.pid(name)
    world.add(2, name)  # published after the first was loaded, as an installation does
    pids: set[int] = set()
    bus = world.scheduler._transitions._bus
    bus.subscribe(events.ModelLoaded, lambda _: pids.update(world.triton.server.stub_pids(name, 1)))
    assert await world.use(name, 2) is SwitchMode.LIVE
    assert pids == {old}
    new = world.pid(name)
    assert await world.ask(name) == b"v2"
    assert new is not None
    assert world.triton.server.stub_pids(name, 2) == [new]  # nor was it restarted by the unload
    assert old is not None
    assert not memory.alive(old)


async def test_a_new_version_that_cannot_be_loaded_leaves_the_old_one_serving(
    world: World,
) -> None:
    name = world.add(1)
    world.add(2, name, initialize="raise RuntimeError('no weights here')")
    world.current = 1
    async with world.load_on(name):
        await eventually(lambda: world.answers)
        with pytest.raises(LoadFailed, match="no weights here"):
            await world.use(name, 2)
        await world.more(20)
    assert world.failures == []
    assert set(world.answers) == {b"v1"}
    assert world.unloads() == []


async def test_a_request_that_runs_ends_on_the_version_it_began_on(world: World) -> None:
    name = world.add(1, execute="time.sleep(1.0); text = np.full_like(text, b'v1')")
    world.add(2, name)
    world.current = 1
    await world.ask(name)
    running = asyncio.create_task(world.ask(name))
    await asyncio.sleep(0)
    switching = asyncio.create_task(world.use(name, 2))
    assert await running == b"v1"
    assert await switching is SwitchMode.LIVE
    assert await world.ask(name) == b"v2"


async def test_without_room_for_both_requests_wait(
    triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    world = World(triton, triton_client, budget_mb=70.0)
    name = world.add(1)
    world.add(2, name)
    world.current = 1
    async with world.load_on(name):
        await eventually(lambda: world.answers)
        for version in (2, 1, 2):
            assert await world.use(name, version) is SwitchMode.DRAINED
    assert world.failures == []
    assert set(world.answers) == {b"v1", b"v2"}
    await world.scheduler.close()


async def test_versions_with_different_tensors_are_never_served_by_one_configuration(
    world: World,
) -> None:
    name = world.add(1)
    world.add(2, name)
    config = world.triton.repository / name / "2" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 4"))
    world.current = 1
    async with world.load_on(name):
        await eventually(lambda: world.answers)
        assert await world.use(name, 2) is SwitchMode.DRAINED
    assert world.failures == []
