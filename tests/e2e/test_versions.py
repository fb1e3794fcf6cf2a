"""Versions as users handle them: a running server, a hub whose branch moves, the command line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http as triton_http

from controlplane.client import AsyncModelMoraClient, ModelMoraApiError
from tests.hub import LocalHub
from tests.models import tiny_bert
from tests.service import Service
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

MODEL = "org/tiny"
API = f"/api/v1/models/{MODEL}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds of a model whose vectors differ: as it is, and not normalized."""
    home = tmp_path_factory.mktemp("weights")
    return tiny_bert(home / "one"), tiny_bert(home / "two", normalize=False)


@pytest.fixture(scope="module")
def hub(weights: tuple[Path, Path]) -> Iterator[LocalHub]:
    with LocalHub() as local:
        local.tag(MODEL, "v1.0.0", local.add(MODEL, weights[0]))
        yield local


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, hub: LocalHub, weights: tuple[Path, Path]
) -> Iterator[Service]:
    """A server with the model at v1.0.0 (current) and, since the branch moved, at v2.0.0."""
    with pytest.MonkeyPatch.context() as patched:
        home = tmp_path_factory.mktemp("service")
        patched.setenv("HF_ENDPOINT", hub.url)
        patched.setenv("HF_HOME", str(home / "hf"))
        running = Service(home, forking=True).start()
    try:
        with running.client() as client:
            client.install(MODEL, "v1.0.0", timeout=120)
            hub.tag(MODEL, "v2.0.0", hub.add(MODEL, weights[1]))
            installed = client.install(MODEL, "v2.0.0", timeout=120)
        assert installed.version == "v2.0.0"
        assert installed.current_version == "v1.0.0"
        yield running
    finally:
        running.end()


def modelmora(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane", *arguments],
        capture_output=True,
        text=True,
        env={**service.environment(), "MODELMORA_URL": service.url},
        check=False,
    )


def tensor(kind: Any) -> list[Any]:
    given = kind.InferInput("text_input", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[b"hello"]], dtype=np.object_))
    return [given]


class Load:
    """Clients of all three doors that name no version and ask on and on."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.lengths: list[float] = []
        self.failures: list[BaseException] = []
        self._stop = asyncio.Event()

    async def rest(self) -> None:
        async with AsyncModelMoraClient(self.service.url) as client:

            async def ask() -> Any:
                return (await client.embed(MODEL, "hello"))[0]

            await self._on_and_on(ask)

    async def grpc(self) -> None:
        client = triton_grpc.InferenceServerClient(self.service.grpc_url)

        async def ask() -> Any:
            return (await client.infer("org--tiny", tensor(triton_grpc))).as_numpy("embedding")

        await self._on_and_on(ask)
        await client.close()

    async def http(self) -> None:
        body, size = triton_http.InferenceServerClient.generate_request_body(tensor(triton_http))
        headers = {"Inference-Header-Content-Length": str(size)} if size else {}
        async with httpx.AsyncClient(base_url=self.service.url, timeout=30) as client:

            async def ask() -> Any:
                path = f"/v2/models/{MODEL}/infer"
                answer = await client.post(path, content=body, headers=headers)
                assert answer.status_code == 200, answer.text
                length = answer.headers.get("inference-header-content-length")
                return triton_http.InferenceServerClient.parse_response_body(
                    answer.content, header_length=None if length is None else int(length)
                ).as_numpy("embedding")

            await self._on_and_on(ask)

    async def _on_and_on(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        while not self._stop.is_set():
            try:
                vector = await ask()
            except BaseException as error:  # noqa: BLE001 whatever it is: a lost request
                self.failures.append(error)
                return
            self.lengths.append(float(np.linalg.norm(vector)))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        doors = [self.rest, self.rest, self.grpc, self.grpc, self.http, self.http]
        tasks = [asyncio.create_task(door()) for door in doors]
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = len(self.lengths) + count
        await eventually(lambda: len(self.lengths) >= wanted or self.failures)


async def test_ten_switches_under_load_lose_no_request(service: Service) -> None:
    load = Load(service)
    async with AsyncModelMoraClient(service.url) as client, load.running():
        await load.more(12)
        for turn in range(10):
            wanted = "v2.0.0" if turn % 2 == 0 else "v1.0.0"
            switched = await client.use(MODEL, wanted)
            assert switched.version == wanted
            assert switched.switch == "live"
            await load.more(12)
    assert load.failures == []
    whole = [length for length in load.lengths if abs(length - 1) < 1e-3]
    assert 0 < len(whole) < len(load.lengths)  # both versions answered
    assert '"level": "error"' not in service.log
    with service.client() as plain:
        (loaded,) = plain.status().loaded_models
    assert loaded.version == "v1.0.0"


def test_latest_is_the_highest_ready_version_at_every_door(service: Service) -> None:
    with service.client() as client:
        assert client.version(MODEL, "latest").version == "v2.0.0"
        assert client.infer(MODEL, {"text": "hi"}, version="latest").version == "v2.0.0"
        assert client.versions(MODEL).latest == "v2.0.0"
    assert httpx.get(f"{service.url}/v2/models/org--tiny/versions/latest/ready").status_code == 200
    http = triton_http.InferenceServerClient(service.url.removeprefix("http://"))
    result = http.infer("org--tiny", tensor(triton_http), model_version="latest")
    http.close()
    assert result.get_response()["model_version"] == "2"


def test_a_branch_with_a_slash_is_a_version(service: Service, hub: LocalHub) -> None:
    hub.add(MODEL, {"config.json": b"{}"}, branch="team/next")
    base = f"{service.url}{API}/versions"
    body = {"version": "team/next", "metadata": {"why": "trial"}}
    added = httpx.post(base, json=body)
    assert added.status_code == 201
    assert added.json()["status"] == "registered"
    for spelled in ("team/next", "team%2Fnext"):
        found = httpx.get(f"{base}/{spelled}").json()
        assert found["metadata"] == {"why": "trial"}
        assert found["current"] is False
    assert httpx.post(base, json=body).json()["error"]["code"] == "VERSION_ALREADY_EXISTS"
    assert httpx.post(f"{base}/team/next").json()["error"]["code"] == "MODEL_NOT_READY"
    assert httpx.delete(f"{base}/team%2Fnext").status_code == 204
    assert httpx.get(f"{base}/team/next").json()["error"]["code"] == "VERSION_NOT_FOUND"


def test_the_current_version_is_protected(service: Service) -> None:
    answer = httpx.delete(f"{service.url}{API}/versions/v1.0.0")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "CURRENT_VERSION_PROTECTED"
    assert httpx.delete(f"{service.url}{API}/versions/latest").status_code == 404


def test_upgrade_pin_downgrade_and_removal_on_the_command_line(service: Service) -> None:
    outdated = modelmora(service, "outdated")
    assert "v2.0.0" in outdated.stdout, outdated.stderr
    pinned = modelmora(service, "pin", MODEL)
    assert "pinned to v1.0.0" in pinned.stdout
    refused = modelmora(service, "upgrade", MODEL)
    assert refused.returncode == 5
    assert "unpin" in refused.stderr
    assert modelmora(service, "unpin", MODEL).returncode == 0

    upgraded = modelmora(service, "upgrade", MODEL)
    assert "v2.0.0 is current, instead of v1.0.0" in upgraded.stdout, upgraded.stderr
    assert "up to date" in modelmora(service, "upgrade", MODEL).stdout
    assert "v2.0.0 *" in modelmora(service, "versions", MODEL).stdout
    assert modelmora(service, "upgrade", f"{MODEL}@v1.0.0").returncode == 2

    assert modelmora(service, "downgrade", f"{MODEL}@v1.0.0").returncode == 0
    assert modelmora(service, "downgrade", f"{MODEL}@v2.0.0").returncode == 2

    with service.client() as client:
        client.load(MODEL, "v2.0.0")  # in memory: it is drained and unloaded first
    removed = modelmora(service, "remove-version", f"{MODEL}@v2.0.0")
    assert removed.returncode == 0, removed.stderr
    for folder in (service.model_repository, service.data_dir / "downloads"):
        assert [path.name for path in (folder / "org--tiny").iterdir() if path.is_dir()] == ["1"]
    with service.client() as client:
        assert client.status().loaded_models == []


def test_a_branch_that_moved_is_upgraded_to_its_commit(
    service: Service, hub: LocalHub, weights: tuple[Path, Path]
) -> None:
    model = "org/branchy"
    first = hub.add(model, weights[0])
    with service.client() as client:
        client.install(model, timeout=120)
        assert not client.outdated(model).data[0].outdated
        second = hub.add(model, weights[1])
        (found,) = client.outdated(model).data
        assert (found.branch, found.revision, found.branch_revision) == ("main", first, second)
        upgraded = client.upgrade(model, timeout=120)
        assert upgraded.version == second[:12]
        new = client.version(model, "latest")
        assert (new.version, new.revision) == (second[:12], second)
        assert new.metadata["branch"] == "main"
        assert not client.outdated(model).data[0].outdated
        assert client.upgrade(model).version == upgraded.version

        # Uninstalled and installed again, `main` would be other files under the same name.
        client.remove_version(model, "main")
        with pytest.raises(Exception, match="stood for other files"):
            client.install(model, "main", timeout=120)


def test_outdated_says_which_repository_cannot_be_asked(service: Service, hub: LocalHub) -> None:
    hub.fail("/api/models/org/branchy/refs", status=404)
    with service.client() as client:
        found = {update.model_id: update for update in client.outdated().data}
        assert found["org/branchy"].error
        assert found[MODEL].error is None
        with pytest.raises(ModelMoraApiError, match="not registered"):
            client.outdated("org/unknown")
