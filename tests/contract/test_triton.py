"""What the control plane relies on in a Triton server, checked on the real one and on the fake.

1. load returns when the model is ready; its failure carries the model's own words.
2. load has a deadline; the server may go on after it, and the index says so.
3. load serves exactly the version that its configuration names.
4. unload returns when the index no longer has the model; unloading twice is harmless.
5. infer distinguishes: not loaded, does not fit, too late, failed. An empty batch does not fit.
6. statistics count requests that were answered well, per load of a model.
7. A load that names a further version starts it beside the one that runs; one that no longer names
   a version unloads that one alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from controlplane.lifecycle import elsewhere
from controlplane.triton.client import TritonClient
from controlplane.triton.failures import (
    ModelFailed,
    ModelUnknown,
    RequestRejected,
    TritonTimeout,
    TritonUnavailable,
)
from controlplane.triton.model_config import load_json, read_pbtxt
from controlplane.triton.server import Endpoints
from tests.fakes import FakeTriton
from tests.triton_models import config_text
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TEXT = np.array([["one"], ["two"]], dtype=object)
LOAD_TIMEOUT = 60.0


class Case:
    """A client, the repository that its server reads, and a way to cut off a hanging load."""

    def __init__(self, client: Any, models: Any, server: Any = None) -> None:
        self.client = client
        self.models = models
        self.server = server

    async def loaded_echo(self) -> str:
        name = self.models.echo()
        await self.client.load(name, None, timeout=LOAD_TIMEOUT)
        return name

    async def infer(self, name: str, *, version: int = 1, timeout: float = 60.0) -> Any:
        return await self.client.infer(
            name, version, {"text_input": TEXT}, ["text_output"], timeout=timeout
        )

    async def state(self, name: str) -> set[str]:
        return {entry.state for entry in await self.client.index() if entry.name == name}

    async def end_hanging_load(self, name: str) -> None:
        """Until the server has noticed."""
        if self.server is not None:
            assert self.server.kill_stubs(name, 1) == 1
            await eventually(lambda: self.has_ended_loading(name))

    async def has_ended_loading(self, name: str) -> bool:
        return await self.state(name) != {"LOADING"}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.triton)])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    if request.param == "fake":
        fake = FakeTriton()
        yield Case(fake, fake.models)
        await fake.close()
        return
    triton = request.getfixturevalue("triton")
    client = TritonClient(triton.endpoints)
    yield Case(client, triton.models, triton.server)
    for name in {entry.name for entry in await client.index() if entry.state == "READY"}:
        await client.unload(name, timeout=LOAD_TIMEOUT)
    await client.close()


async def test_is_live_and_ready(case: Case) -> None:
    assert await case.client.live()
    assert await case.client.ready()


async def test_index_lists_models_that_were_never_loaded(case: Case) -> None:
    name = case.models.echo()
    entries = [entry for entry in await case.client.index() if entry.name == name]
    assert [(entry.version, entry.state) for entry in entries] == [(None, "")]


async def test_load_infer_unload(case: Case) -> None:
    name = await case.loaded_echo()
    assert await case.state(name) == {"READY"}
    answer = await case.infer(name)
    assert answer["text_output"].tolist() == [[b"one"], [b"two"]]
    await case.client.unload(name, timeout=LOAD_TIMEOUT)
    assert await case.state(name) == {"UNAVAILABLE"}
    with pytest.raises(ModelUnknown):
        await case.infer(name)


async def test_loads_again_after_unload(case: Case) -> None:
    name = await case.loaded_echo()
    await case.client.unload(name, timeout=LOAD_TIMEOUT)
    await case.client.load(name, None, timeout=LOAD_TIMEOUT)
    assert await case.infer(name)


async def test_load_of_a_loaded_model_does_nothing(case: Case) -> None:
    name = await case.loaded_echo()
    await case.client.load(name, None, timeout=LOAD_TIMEOUT)
    assert await case.infer(name)


async def test_unload_twice_and_of_the_unknown_is_harmless(case: Case) -> None:
    name = await case.loaded_echo()
    for _ in range(2):
        await case.client.unload(name, timeout=LOAD_TIMEOUT)
    await case.client.unload("test--never-heard-of", timeout=LOAD_TIMEOUT)


async def test_load_serves_the_version_of_its_configuration(case: Case) -> None:
    name = case.models.echo(version=1)
    case.models.echo(name, version=2)
    config = read_pbtxt(config_text(name))
    await case.client.load(name, load_json(config, 1), timeout=LOAD_TIMEOUT)
    assert await case.infer(name, version=1)
    with pytest.raises(ModelUnknown):
        await case.infer(name, version=2)
    await case.client.unload(name, timeout=LOAD_TIMEOUT)
    await case.client.load(name, load_json(config, 2), timeout=LOAD_TIMEOUT)
    assert await case.infer(name, version=2)
    with pytest.raises(ModelUnknown):
        await case.infer(name, version=1)


async def test_versions_come_and_go_beside_each_other(case: Case) -> None:
    name = case.models.echo()
    case.models.echo(name, version=2)
    config = read_pbtxt(config_text(name))
    await case.client.load(name, load_json(config, 1), timeout=LOAD_TIMEOUT)
    await case.client.load(name, load_json(config, 1, 2), timeout=LOAD_TIMEOUT)
    assert await case.client.ready_versions(name) == {1, 2}
    assert await case.infer(name, version=1)
    assert await case.infer(name, version=2)
    rest = load_json(config, 2)
    await case.client.unload_version(name, 1, rest, timeout=LOAD_TIMEOUT)
    assert await case.client.ready_versions(name) == {2}
    assert await case.infer(name, version=2)
    with pytest.raises(ModelUnknown):
        await case.infer(name, version=1)


async def test_failing_load_carries_the_models_words(case: Case) -> None:
    name = case.models.failing("no weights here")
    with pytest.raises(ModelFailed, match="no weights here"):
        await case.client.load(name, None, timeout=LOAD_TIMEOUT)
    entries = [entry for entry in await case.client.index() if entry.name == name]
    assert [entry.state for entry in entries] == ["UNAVAILABLE"]
    assert "no weights here" in entries[0].reason


async def test_load_of_an_unknown_model(case: Case) -> None:
    with pytest.raises(ModelUnknown):
        await case.client.load("test--never-heard-of", None, timeout=LOAD_TIMEOUT)


async def test_hanging_load_ends_at_its_deadline(case: Case) -> None:
    name = case.models.hanging()
    with pytest.raises(TritonTimeout):
        await case.client.load(name, None, timeout=1.0)
    assert await case.state(name) == {"LOADING"}
    await case.end_hanging_load(name)


async def test_other_models_load_and_answer_while_one_hangs(case: Case) -> None:
    hanging = case.models.hanging()
    stuck = asyncio.ensure_future(case.client.load(hanging, None, timeout=LOAD_TIMEOUT))
    name = await case.loaded_echo()
    assert await case.infer(name)
    assert not stuck.done()
    stuck.cancel()
    assert await case.state(hanging) == {"LOADING"}
    await case.end_hanging_load(hanging)


async def test_infer_of_a_model_that_is_not_loaded(case: Case) -> None:
    with pytest.raises(ModelUnknown):
        await case.infer(case.models.echo())
    with pytest.raises(ModelUnknown):
        await case.infer("test--never-heard-of")


async def test_infer_of_a_version_that_is_not_loaded(case: Case) -> None:
    name = await case.loaded_echo()
    with pytest.raises(ModelUnknown):
        await case.infer(name, version=7)


async def test_infer_without_the_input_is_rejected(case: Case) -> None:
    name = await case.loaded_echo()
    with pytest.raises(RequestRejected):
        await case.client.infer(name, 1, {}, ["text_output"], timeout=60.0)


async def test_an_empty_batch_is_rejected(case: Case) -> None:
    name = await case.loaded_echo()
    nothing = np.empty((0, 1), dtype=object)
    with pytest.raises(RequestRejected):
        await case.client.infer(name, 1, {"text_input": nothing}, ["text_output"], timeout=60.0)


async def test_infer_for_an_unknown_output_is_rejected(case: Case) -> None:
    name = await case.loaded_echo()
    with pytest.raises(RequestRejected):
        await case.client.infer(name, 1, {"text_input": TEXT}, ["nonsense"], timeout=60.0)


async def test_infer_has_a_deadline(case: Case) -> None:
    name = case.models.slow(seconds=1.0)
    await case.client.load(name, None, timeout=LOAD_TIMEOUT)
    with pytest.raises(TritonTimeout):
        await case.infer(name, timeout=0.2)


async def test_statistics_count_inferences(case: Case) -> None:
    name = await case.loaded_echo()
    await case.infer(name)

    async def counted() -> bool:  # the server counts after it has answered
        statistics = await case.client.statistics(name, 1)
        return int(statistics.get("inference_count", 0)) == len(TEXT)

    await eventually(counted)


async def test_statistics_of_all_models_count_requests_anew_with_each_load(case: Case) -> None:
    used, idle = await case.loaded_echo(), await case.loaded_echo()

    async def answered(name: str) -> int:
        return elsewhere.answered((await case.client.all_statistics())[name, 1])

    for _ in range(2):  # of two texts each: requests are counted, not texts
        await case.infer(used)

    async def counted() -> bool:  # the server counts after it has answered
        return await answered(used) == 2

    await eventually(counted)
    assert await answered(idle) == 0
    await case.client.unload(used, timeout=LOAD_TIMEOUT)
    assert (used, 1) not in await case.client.all_statistics()
    await case.client.load(used, None, timeout=LOAD_TIMEOUT)
    assert await answered(used) == 0


async def test_nobody_there() -> None:
    client = TritonClient(Endpoints(grpc_url="127.0.0.1:1", http_url="http://127.0.0.1:1"))
    assert not await client.live(timeout=1.0)
    with pytest.raises(TritonUnavailable):
        await client.index()
    await client.close()
    with pytest.raises(TritonUnavailable):
        await client.index()
