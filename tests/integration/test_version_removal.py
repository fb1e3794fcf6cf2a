"""Removing a version while requests use it, on the real Triton: they end first, later ones fail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from controlplane.db import open_db
from controlplane.errors import CurrentVersionProtected, VersionNotFound
from controlplane.events import EventBus
from controlplane.lifecycle.state import HOLDING_MEMORY
from controlplane.lifecycle.versions import remove_version
from controlplane.registry.install import Installer
from controlplane.registry.repository import ModelRepository
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from tests.integration.test_version_switch import World
from tests.locks import add_ready, source
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.triton

SLOW = "time.sleep(1.0); text = np.full_like(text, b'v1')"


class Catalog:
    """A model with two ready versions on the session's server; v2 is current."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.name = world.add(1, execute=SLOW)
        world.add(2, self.name)
        self.model_id = self.name.replace("--", "/")
        self.db = open_db(":memory:")
        self.store = ModelStore(self.db, EventBus())
        add_ready(self.store, self.model_id, "v1")
        add_ready(self.store, self.model_id, "v2", files=source("2"))
        self.store.set_current(self.model_id, "v2")
        repository = world.triton.repository
        settings = Settings(data_dir=home / "data", model_repository=repository)
        self.installer = Installer(self.store, ModelRepository(repository), settings)

    async def ask(self, version: str | None) -> bytes:
        servable = self.store.servable(self.model_id, version)
        deadline = asyncio.get_running_loop().time() + 60
        async with self.world.scheduler.lease(servable, deadline=deadline) as leased:
            tensor = {"text_input": np.array([[b"hi"]], np.object_)}
            outputs = await self.world.client.infer(
                *leased.key, tensor, ["text_output"], timeout=60
            )
        answer = outputs["text_output"][0, 0]
        assert isinstance(answer, bytes)
        return answer

    async def remove(self, version: str) -> None:
        await remove_version(
            self.store, self.installer, self.world.scheduler, self.model_id, version
        )


@pytest.fixture
async def catalog(
    triton: BackgroundTriton, triton_client: TritonClient, tmp_path: Path
) -> AsyncIterator[Catalog]:
    world = World(triton, triton_client)
    catalog = Catalog(world, tmp_path)
    yield catalog
    await world.scheduler.close()
    await catalog.installer.close()
    catalog.db.close()


async def test_a_version_in_use_is_drained_and_then_removed(catalog: Catalog) -> None:
    world, folder = catalog.world, catalog.world.triton.repository / catalog.name
    await catalog.ask("v1")
    running = [asyncio.create_task(catalog.ask("v1")) for _ in range(3)]
    await eventually(lambda: (v := world.scheduler.view(catalog.model_id)) and v.active_requests)
    await asyncio.wait_for(catalog.remove("v1"), 60)
    assert [task.done() for task in running] == [True] * 3  # it waited for them
    assert {await task for task in running} == {b"v1"}
    assert [v.version for v in catalog.store.get(catalog.model_id).versions] == ["v2"]
    assert not (folder / "1").exists()
    assert (folder / "2").exists()
    assert world.scheduler.view(catalog.model_id) is None
    with pytest.raises(VersionNotFound):
        await catalog.ask("v1")
    assert await catalog.ask(None) == b"v2"
    with pytest.raises(CurrentVersionProtected):
        await catalog.remove("v2")


async def test_a_version_that_is_loaded_at_the_last_moment_leaves_memory_too(
    catalog: Catalog,
) -> None:
    known = catalog.store.servable(catalog.model_id, "v1")
    remove, late = catalog.store.remove_version, []

    async def ask() -> None:
        deadline = asyncio.get_running_loop().time() + 60
        async with catalog.world.scheduler.lease(known, deadline=deadline):
            pass

    def removed(model_id: str, version: str) -> object:
        late.append(asyncio.create_task(ask()))  # it had looked the version up before
        return remove(model_id, version)

    catalog.store.remove_version = removed  # type: ignore[method-assign, assignment]
    await asyncio.wait_for(catalog.remove("v1"), 60)  # no "it is just being loaded"
    await asyncio.gather(*late, return_exceptions=True)
    shown = catalog.world.scheduler.view(catalog.model_id)
    assert shown is None or shown.state not in HOLDING_MEMORY
    assert catalog.world.scheduler.used_mb == 0
