"""The test inference of ready-made models on the real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import pytest

from controlplane.lifecycle import health, ready_probe
from controlplane.registry.model import ModelId
from controlplane.registry.ready_artefact import prepare
from controlplane.registry.ready_models import ServerFacts
from controlplane.registry.sources import SourceRules
from controlplane.triton.failures import TritonError
from tests import ready_folders
from tests.integration.test_ready_sources import fetched
from tests.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.triton


class Loader:
    """Brings folders into the session's Triton, as an installation does."""

    def __init__(self, triton: BackgroundTriton, client: TritonClient, home: Path) -> None:
        self.triton, self.client, self.home = triton, client, home

    async def load(self, folder: Path) -> dict[str, Any]:
        """The manifest of the model, which is loaded under the folder's name."""
        source = fetched(self.home / folder.name, folder.as_uri(), SourceRules())
        received = self.home / folder.name / "downloads" / "org--name" / "1"
        target = self.triton.repository / f"ready--{folder.name}"
        target.mkdir(parents=True)
        name = ModelId("ready", folder.name)
        server = ServerFacts(embedded=True, gpu=False)
        manifest = prepare(name, "v", 1, received, source, target / "1", server)
        (target / "1" / "config.pbtxt").rename(target / "config.pbtxt")
        await self.client.load(f"ready--{folder.name}", timeout=60)
        return manifest


@pytest.fixture
def loader(triton: BackgroundTriton, triton_client: TritonClient, tmp_path: Path) -> Loader:
    return Loader(triton, triton_client, tmp_path / "loader")


@pytest.mark.parametrize("kind", ["echo", "repeat", "running_sum", "typed", "choosy"])
async def test_every_kind_of_model_is_found_well(
    loader: Loader, triton_client: TritonClient, tmp_path: Path, kind: str
) -> None:
    manifest = await loader.load(getattr(ready_folders, kind)(tmp_path / f"well-{kind}"))
    for _ in range(2):  # a second sequence must not stumble over the first
        milliseconds = await ready_probe.probe(triton_client, f"ready--well-{kind}", 1, manifest)
        assert 0 < milliseconds < 10_000


@pytest.mark.parametrize("kind", ["echo", "repeat"])
async def test_a_model_without_its_process_is_found_ill(
    loader: Loader, triton_client: TritonClient, tmp_path: Path, kind: str
) -> None:
    manifest = await loader.load(getattr(ready_folders, kind)(tmp_path / f"dead-{kind}"))
    name = f"ready--dead-{kind}"
    for pid in loader.triton.server.stub_pids(name, 1):
        psutil.Process(pid).kill()
    await eventually(lambda: not loader.triton.server.stub_pids(name, 1))
    with pytest.raises(TritonError):
        await ready_probe.probe(triton_client, name, 1, manifest)
    # After a request has met a dead stub this server takes more than 30 s to unload the model.
    server, old = loader.triton.server, loader.triton.server.pid
    assert server.kill()
    await eventually(lambda: server.state == "ready" and server.pid not in (None, old))
    await eventually(triton_client.live)


async def test_a_model_that_does_not_answer_is_found_ill_unless_it_is_not_to_be_asked(
    loader: Loader,
    triton_client: TritonClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.5)
    manifest = await loader.load(ready_folders.slow(tmp_path / "silent", 3.0))
    with pytest.raises(TritonError, match=r"within 0\.5 s"):
        await ready_probe.probe(triton_client, "ready--silent", 1, manifest)
    folder = ready_folders.slow(tmp_path / "unasked", 3.0)
    with (folder / "config.pbtxt").open("a") as file:
        file.write('parameters { key: "modelmora_probe" value { string_value: "ready" } }')
    manifest = await loader.load(folder)
    assert await ready_probe.probe(triton_client, "ready--unasked", 1, manifest) < 500


async def test_a_model_that_is_not_loaded_is_found_ill(triton_client: TritonClient) -> None:
    manifest = {
        "inputs": [],
        "max_batch_size": 0,
        "ready_made": {"probe": "ready", "decoupled": False, "sequence": False},
    }
    with pytest.raises(TritonError):
        await ready_probe.probe(triton_client, "ready--nowhere", 1, manifest)
