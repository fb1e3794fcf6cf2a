"""What ModelRepository writes, read by the real server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.failures import ModelUnknown, RequestRejected, TritonTimeout
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.triton

MODEL = ModelId("org", "sizes")
NAME = MODEL.triton_name
BACKEND = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.folder = Path(args["model_repository"], args["model_version"])
        self.factor = float((self.folder / "factor.txt").read_text())
        self.served = 0

    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
            if text.size and text[0, 0].startswith(b"sleep "):
                (self.folder / "busy").touch()
                time.sleep(float(text[0, 0][6:]))
            self.served += 1
            sizes = [[len(t) * self.factor, self.served] for t in text[:, 0]]
            array = np.array(sizes, np.float32).reshape(len(text), 2)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", array)]))
        return answers
"""


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model_id": str(MODEL),
        "backend": "sizes",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [2]}],
        "max_batch_size": 32,
        "files": [{"path": "factor.txt", "size": 1, "sha256": "0" * 64}],
        **changes,
    }


def artefact(repository: ModelRepository, factor: int) -> Path:
    folder = repository.new_staging()
    (folder / "manifest.json").write_text(json.dumps(manifest()), encoding="utf-8")
    (folder / "factor.txt").write_text(str(factor), encoding="utf-8")
    return folder


class Served:
    """A published model on a server of its own."""

    def __init__(self, repository: ModelRepository, client: TritonClient) -> None:
        self.repository = repository
        self.client = client

    async def load(self, version: int) -> None:
        await self.client.load(NAME, self.repository.load_config(NAME, version), timeout=60)

    async def infer(
        self, *texts: str, version: int = 1, timeout: float = 60.0, priority: int = 0
    ) -> Any:
        array = np.array([text.encode() for text in texts], dtype=object).reshape(-1, 1)
        answer = await self.client.infer(
            NAME,
            version,
            {"text_input": array},
            ["embedding"],
            timeout=timeout,
            priority=priority,
        )
        return answer["embedding"]


def installed_backend(site: Path) -> Path:
    """A folder as pip leaves it: a package with the backend, and its entry point."""
    (site / "sizes").mkdir(parents=True)
    (site / "sizes" / "__init__.py").write_text(BACKEND, encoding="utf-8")
    facts = site / "sizes-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: sizes\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[modelmora.backends]\nsizes = sizes:TritonPythonModel\n"
    )
    return site


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    package = installed_backend(tmp_path / "package")
    monkeypatch.syspath_prepend(package)
    repository = ModelRepository(tmp_path / "repository")
    server = EmbeddedTriton(repository.root, tmp_path / "state", package=package / "sizes")
    await server.start()
    client = TritonClient(server.endpoints)
    for version in (1, 2):
        repository.publish(MODEL, version, artefact(repository, factor=version))
    yield Served(repository, client)
    await client.close()
    await server.stop()


async def test_serves_the_version_that_was_asked_for(served: Served) -> None:
    for version in (1, 2, 1):
        await served.load(version)
        answer = await served.infer("abc", version=version)
        assert answer[:, 0].tolist() == [3.0 * version]
        with pytest.raises(ModelUnknown):
            await served.infer("abc", version=3 - version)
        await served.client.unload(NAME, timeout=30)


async def test_a_plain_load_serves_the_version_published_last(served: Served) -> None:
    await served.client.load(NAME, timeout=60)
    assert (await served.infer("abc", version=2))[:, 0].tolist() == [6.0]


async def test_staged_work_is_not_served(served: Served) -> None:
    staged = served.repository.new_staging()
    assert [entry.name for entry in await served.client.index()] == [NAME]
    with pytest.raises(ModelUnknown):
        await served.client.load(f".staging/{staged.name}", timeout=60)


async def test_removed_versions_and_models_cannot_be_loaded(served: Served) -> None:
    served.repository.remove_version(MODEL, 2)
    await served.client.load(NAME, timeout=60)
    assert await served.infer("abc", version=1) is not None
    await served.client.unload(NAME, timeout=30)
    served.repository.remove(MODEL)
    with pytest.raises(ModelUnknown):
        await served.client.load(NAME, timeout=60)


async def test_batches_up_to_the_limit(served: Served) -> None:
    await served.load(1)
    assert (await served.infer(*["x"] * 32)).shape == (32, 2)
    with pytest.raises(RequestRejected, match="batch-size"):
        await served.infer(*["x"] * 33)


async def test_requests_that_wait_too_long_end_at_their_deadline(served: Served) -> None:
    await served.load(1)
    busy = asyncio.ensure_future(served.infer("sleep 1"))
    await eventually((served.repository.root / NAME / "1" / "busy").exists)
    with pytest.raises(TritonTimeout):
        await served.infer("late", timeout=0.3)
    await busy
