"""Registering without a task from archives and S3: what is downloaded to find out is used."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    ModelAlreadyExists,
    RemoteCodeRefused,
    SourceBeingRead,
    SourceRefused,
    ValidationFailed,
)
from controlplane.registry.model import Model, NewModel, VersionStatus
from controlplane.registry.pending_looks import PendingLooks
from controlplane.registry.registration import register
from tests.integration.test_install import FILES, HANGS, MODEL, QUICK, Registry, registry, until
from tests.integration.test_registration import SENTENCE
from tests.integration.test_sources_s3 import endpoint, put, s3
from tests.webserver import Fault, WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["endpoint", "put", "registry", "s3"]

ALLOWED = {"allow_http": True, "allow_private_sources": True}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path) as server:
        yield server


def tarred(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"minilm/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


async def enter(
    registry: Registry, source_url: str, *, patience: float | None = None, **fields: Any
) -> Model:
    new = NewModel(model_id=MODEL, source_url=source_url, **fields)
    return await register(registry.installer.shop, new, limits=QUICK, patience=patience)


def facts(model: Model) -> dict[str, Any]:
    return {name: fact["value"] for name, fact in model.current.metadata["facts"].items()}


async def test_an_archive_on_the_web_tells_its_task_and_comes_once(
    registry: Registry, web: WebServer
) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    registry.converter = HANGS
    registry.start(**ALLOWED)
    model = await enter(registry, f"{web.url}/m.tgz")
    assert (model.task_type, facts(model)["vector_size"]) == ("txt2embed", 12)
    assert model.current.status is VersionStatus.REGISTERED
    asked = len(web.requests)
    registry.installer.request(MODEL)
    await until(lambda: registry.store.version(MODEL).status is VersionStatus.EXPORTING)
    assert len(web.requests) == asked
    assert model.current.checksum == registry.store.version(MODEL).checksum


async def test_a_prefix_and_an_archive_on_s3_tell_their_task(
    registry: Registry, put: Any, s3: Any
) -> None:
    put({f"m/{name}": content for name, content in SENTENCE.items()} | {"m.tgz": tarred(SENTENCE)})
    model = await enter(registry, "s3://models/m")
    assert facts(model)["vector_size"] == 12
    assert model.current.checksum is None  # only small files came
    await registry.installer.uninstall(MODEL)
    model = await enter(registry, "s3://models/m.tgz")
    assert facts(model)["vector_size"] == 12
    assert model.current.checksum is not None


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        ({"README.md": b"# a model"}, ArtifactNotAccessible, r"no config\.json"),
        (FILES, ValidationFailed, "cannot be told"),
        (FILES | {"config.json": b'{"auto_map": {"A": "m.M"}}'}, RemoteCodeRefused, "own code"),
        (SENTENCE | {"../out": b"x"}, SourceRefused, "leaves its folder"),
    ],
    ids=["no model", "no task", "code", "harmful"],
)
async def test_what_cannot_be_registered_leaves_nothing(
    registry: Registry, web: WebServer, files: dict[str, bytes], kind: type[Exception], says: str
) -> None:
    web.files["/m.tgz"] = tarred(files)
    registry.start(**ALLOWED)
    with pytest.raises(kind, match=says):
        await enter(registry, f"{web.url}/m.tgz")
    assert registry.store.list().total_items == 0
    assert registry.leftovers() == []


async def test_s3_without_a_model_or_with_code_is_told(registry: Registry, put: Any) -> None:
    with pytest.raises(ArtifactNotAccessible, match=r"no config\.json"):
        await enter(registry, "s3://models/nothing")
    put({"m/config.json": json.dumps({"auto_map": {"A": "m.M"}}).encode()})
    with pytest.raises(RemoteCodeRefused, match="own code"):
        await enter(registry, "s3://models/m")


async def test_rules_and_digests_hold_while_looking(registry: Registry, web: WebServer) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    with pytest.raises(SourceRefused, match="MODELMORA_ALLOW_HTTP"):
        await enter(registry, f"{web.url}/m.tgz")
    registry.start(**ALLOWED)
    with pytest.raises(ChecksumMismatch):
        await enter(registry, f"{web.url}/m.tgz#sha256={'0' * 64}")
    with pytest.raises(ChecksumMismatch):
        await enter(registry, f"{web.url}/m.tgz", checksum="sha256:" + "0" * 64)
    assert registry.leftovers() == []


async def test_looking_can_be_cancelled(registry: Registry, web: WebServer) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    web.faults["/m.tgz"] = [Fault("stall", after=100)] * 9
    registry.start(**ALLOWED)
    looking = asyncio.create_task(enter(registry, f"{web.url}/m.tgz"))
    await until(web.stalled.is_set)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert registry.leftovers() == []


async def test_a_crash_while_looking_is_swept(registry: Registry) -> None:
    folder = registry.home / "data" / "downloads" / ".registration" / "0"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w")
    registry.start()
    assert registry.leftovers() == []


async def test_a_slow_archive_holds_no_request_and_comes_once(
    registry: Registry, web: WebServer
) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    web.faults["/m.tgz"] = [Fault("stall", after=100)]
    registry.start(**ALLOWED)
    for _ in range(2):
        with pytest.raises(SourceBeingRead, match=r"m\.tgz.*Send the same request again"):
            await enter(registry, f"{web.url}/m.tgz", patience=0.3)
    both = [asyncio.create_task(enter(registry, f"{web.url}/m.tgz")) for _ in range(2)]
    await asyncio.sleep(0)
    web.released.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert len(web.requests) <= 2  # where it was cut off it goes on
    (entered,) = (model for model in outcomes if isinstance(model, Model))
    assert entered.task_type == "txt2embed"
    assert [type(other) for other in outcomes if other is not entered] == [ModelAlreadyExists]
    (folder,) = (registry.installer.shop.downloads / entered.current.triton_name).iterdir()
    assert folder.name == "1"
    assert not list((registry.installer.shop.downloads / ".registration").iterdir())


async def test_what_nobody_asks_for_any_more_ends(registry: Registry, web: WebServer) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    web.files["/other.tgz"] = tarred(SENTENCE)
    web.faults["/m.tgz"] = [Fault("stall", after=100)]
    registry.start(**ALLOWED)
    shop = registry.installer.shop
    shop.looks = PendingLooks(keep_seconds=0.05)
    for name in ("m", "other"):
        with pytest.raises(SourceBeingRead):
            await enter(registry, f"{web.url}/{name}.tgz", patience=0)
    web.released.set()
    await until(lambda: shop.looks.idle)
    assert registry.leftovers() == []


async def test_what_is_given_up_while_it_is_read_leaves_nothing(
    registry: Registry, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    registry.start(**ALLOWED)
    reading, go_on = threading.Event(), threading.Event()

    def slowly(_: Path) -> dict[str, Any]:
        reading.set()
        go_on.wait(20)
        return {}

    monkeypatch.setattr("controlplane.registry.metadata.read_folder", slowly)
    entering = asyncio.create_task(enter(registry, f"{web.url}/m.tgz", patience=20))
    await until(reading.is_set)
    closing = asyncio.create_task(registry.installer.shop.looks.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    await asyncio.gather(entering, return_exceptions=True)
    assert registry.leftovers() == []


async def test_a_failure_waits_for_who_asks_again(registry: Registry, web: WebServer) -> None:
    registry.start(**ALLOWED)
    with pytest.raises(SourceBeingRead):
        await enter(registry, f"{web.url}/absent.tgz", patience=0)
    await until(lambda: len(web.requests) == 1)
    with pytest.raises(ArtifactNotAccessible, match="does not exist"):
        await enter(registry, f"{web.url}/absent.tgz")
    assert len(web.requests) == 1


async def test_the_end_of_the_server_ends_it(registry: Registry, web: WebServer) -> None:
    web.files["/m.tgz"] = tarred(SENTENCE)
    web.faults["/m.tgz"] = [Fault("stall", after=100)]
    registry.start(**ALLOWED)
    with pytest.raises(SourceBeingRead):
        await enter(registry, f"{web.url}/m.tgz", patience=0.1)
    web.released.set()
    await registry.stop()
    assert registry.leftovers() == []
