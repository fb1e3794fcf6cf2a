"""Graphs on Triton's own backends: the real server, our lifecycle's calls, a stand-in for the one
backend that this build lacks (`tests/native.py`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from controlplane.errors import LoadFailed
from controlplane.lifecycle.effects import TritonEffects
from controlplane.registry.model import ModelId, Servable, TaskType
from controlplane.registry.repository import ModelRepository
from controlplane.triton import installation, native_config
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.failures import ModelFailed, TritonError
from controlplane.triton.native_backends import find_native_backends
from tests import native
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.triton

TEXTS = ("a b", "c", "a b c a b c", "", "?")


class Native:
    """A server with the stand-in, and our side of it."""

    def __init__(self, server: EmbeddedTriton, client: TritonClient, root: Path) -> None:
        self.server = server
        self.client = client
        self.repository = ModelRepository(root)
        self.effects = self.new_effects("onnxruntime", "openvino")

    def new_effects(self, *backends: str) -> TritonEffects:
        return TritonEffects(
            self.client, self.server, self.repository, native_backends=list(backends)
        )

    def published(self, name: str, *versions: int) -> list[Servable]:
        model_id = ModelId("org", name)
        for version in versions:
            folder = native.artefact(self.repository.new_staging() / "artefact")
            self.repository.publish(model_id, version, folder)
        return [
            Servable(
                model_id=str(model_id),
                version=str(version),
                version_id=f"{name}{version}",
                task_type=TaskType.TXT2EMBED,
                triton_name=model_id.triton_name,
                triton_version=version,
                need_mb=10.0,
            )
            for version in versions
        ]

    async def embed(self, target: Servable, *texts: str, **parameters: Any) -> Any:
        given = np.array([[text.encode()] for text in texts], np.object_)
        answer = await self.client.infer(
            *target.key, {"text_input": given}, ["embedding"], timeout=10, parameters=parameters
        )
        return answer["embedding"]

    async def has_member(self, target: Servable) -> bool:
        name = native_config.member_name(*target.key)
        return await self.client.model_ready(name, 1, timeout=5)


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Native]:
    monkeypatch.setattr(installation, "_link", native.copied)
    native.add_backend(tmp_path / "state", "onnxruntime")
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "state")
    await server.start()
    client = TritonClient(server.endpoints)
    try:
        yield Native(server, client, tmp_path / "repository")
    finally:
        await client.close()
        await server.stop()


async def test_a_graph_is_run_by_tritons_own_backend(served: Native) -> None:
    wanted = ("openvino", "onnxruntime", "pytorch")
    assert await find_native_backends(served.client, wanted) == ("onnxruntime",)

    (plain,) = served.published("plain", 1)
    await served.new_effects().load(plain, timeout=30)  # with the setting's default
    assert not await served.has_member(plain)
    expected = await served.embed(plain, *TEXTS)

    first, second = served.published("name", 1, 2)
    await served.effects.load(first, timeout=30)
    assert await served.has_member(first)
    np.testing.assert_array_equal(await served.embed(first, *TEXTS), expected)
    unit = await served.embed(first, "a b", normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit), 1, rtol=1e-6)
    with pytest.raises(ModelFailed, match="Triton's backend failed: no d here"):
        await served.embed(first, "d")
    np.testing.assert_array_equal(await served.embed(first, *TEXTS), expected)

    # a switch of versions: each has a member, and the one that stays is not disturbed
    stub = served.server.stub_pids(*first.key)
    assert served.effects.fit_together(first, second)
    await served.effects.load(second, timeout=30)
    assert served.server.stub_pids(*first.key) == stub
    for version in (first, second):
        np.testing.assert_array_equal(await served.embed(version, *TEXTS), expected)
    await served.effects.unload(first, timeout=30)
    assert (await served.has_member(first), await served.has_member(second)) == (False, True)
    np.testing.assert_array_equal(await served.embed(second, *TEXTS), expected)

    # the index, from which strays are told, does not know members
    assert {entry.name for entry in await served.client.index()} == {"org--plain", "org--name"}

    # a process that dies: the next life begins with a fresh member
    for pid in served.server.stub_pids(*second.key):
        psutil.Process(pid).kill()
    with pytest.raises(TritonError):
        await served.embed(second, "a")
    await served.effects.unload(second, timeout=30)
    assert not await served.has_member(second)
    await served.effects.load(second, timeout=30)
    np.testing.assert_array_equal(await served.embed(second, *TEXTS), expected)
    await served.effects.unload(second, timeout=30)
    processes = {psutil.Process(pid) for pids in served.server.stubs().values() for pid in pids}
    await eventually(lambda: len(processes) == 1)  # the plain one's


async def test_loads_at_a_time_and_loads_that_fail(served: Native) -> None:
    # more than Triton has threads for loading: a member that was loaded by its model's own
    # process would wait for a thread that waits for it
    several = [served.published(f"n{number}", 1)[0] for number in range(5)]
    await asyncio.gather(*(served.effects.load(one, timeout=60) for one in several))
    vectors = await asyncio.gather(*(served.embed(one, "a c") for one in several))
    assert all((vector == vectors[0]).all() for vector in vectors)
    await asyncio.gather(*(served.effects.unload(one, timeout=60) for one in several))
    assert not any([await served.has_member(one) for one in several])

    (broken,) = served.published("broken", 1)
    path = served.repository.root / "org--broken" / "1" / "model.onnx"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(LoadFailed, match="org--broken--1"):
        await served.effects.load(broken, timeout=30)
    assert not await served.has_member(broken)

    (stuck,) = served.published("stuck", 1)  # whose own process fails, behind its member
    path = served.repository.root / "org--stuck" / "1" / "tokenizer.json"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(LoadFailed, match="is not a tokenizer"):
        await served.effects.load(stuck, timeout=30)
    assert not await served.has_member(stuck)
