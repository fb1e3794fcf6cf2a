"""Installations as operations, over real HTTP: watched, joined, cancelled, killed and resumed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import uvicorn

from controlplane.client import AsyncModelMoraClient, InstallFailed
from controlplane.errors import OperationFinished
from controlplane.gateway.rest import create_app
from controlplane.gateway.services import Services
from controlplane.registry.model import VersionStatus
from controlplane.registry.operation import MAX_ATTEMPTS, OperationStatus
from tests.hub import LocalHub, wait_until
from tests.integration.test_install import (
    FILES,
    HANGS,
    MODEL,
    Registry,
    _others,  # noqa: F401 a fixture for every test
    _step,
    converters,
    script,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from controlplane.registry.operation import Operation

# Writes the smallest artefact that can be published, with a progress line on the way.
CONVERTS = script(
    """
import hashlib, pathlib
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
output = pathlib.Path(given["--output"]); output.mkdir(parents=True)
print(json.dumps({"event": "progress", "phase": "export", "fraction": 0.5, "message": "half"}))
(output / "model.onnx").write_bytes(b"onnx")
manifest = {
    "format": 1, "model_id": given["--model-id"], "version": given["--version"],
    "task_type": "txt2embed", "backend": "text_embedding", "engine": "onnxruntime",
    "precision": "fp32", "max_batch_size": 8,
    "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
    "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [4]}],
    "files": [{"path": "model.onnx", "size": 4, "sha256": hashlib.sha256(b"onnx").hexdigest()}],
}
(output / "manifest.json").write_text(json.dumps(manifest))
print(json.dumps({"event": "result", "manifest": manifest}))
"""
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield local


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return str(folder)


@contextlib.asynccontextmanager
async def opened(home: Path, converter: Any = CONVERTS) -> AsyncIterator[Registry]:
    registry = Registry(home, converter)
    registry.start()
    try:
        yield registry
    finally:
        await registry.stop()


@contextlib.asynccontextmanager
async def served(registry: Registry, **locks: Any) -> AsyncIterator[str]:
    """The REST API of a registry on a real port; its address."""
    nothing: Any = None
    app = create_app(
        Services(
            settings=registry.settings,
            store=registry.store,
            installer=registry.installer,
            scheduler=nothing,
            inference=nothing,
            server=nothing,
            client=nothing,
            bus=nothing,
            **({"locking": nothing, "lock_operations": nothing} | locks),
            render_metrics=nothing,
            started_at=time.monotonic(),
            version="0",
        )
    )
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        registry.installer.operations.stop_watching()
        server.should_exit = True
        await serving
        await app.close()
        listening.close()


def begin(registry: Registry, source: str | None = None) -> Operation:
    registry.register(source_url=source)
    return registry.installer.install(MODEL)


def status_of(registry: Registry, operation: Operation) -> OperationStatus:
    return registry.installer.operations.get(operation.id).status


# -- the good case -------------------------------------------------------------------------------


async def test_install_is_followed_through_both_phases_to_its_end(
    tmp_path: Path, hub: LocalHub
) -> None:
    hub.add(MODEL, FILES)
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as client,
    ):
        hub.pause("model.safetensors")  # or the download might be over before anybody looks
        phases: list[str] = []

        def on_progress(progress: Any) -> None:
            phases.append(progress.phase)
            if progress.phase == "downloading":
                hub.go_on()

        model = await client.install(MODEL, task_type="txt2embed", on_progress=on_progress)
        assert model.status == "ready"
        assert phases[-1] == "ready"
        assert {"downloading", "exporting"} <= set(phases)
        (operation,) = (await client.list_operations(model_id=MODEL)).data
        assert (operation.status, operation.attempts) == ("succeeded", 1)
        assert operation.created_at <= operation.started_at <= operation.finished_at
        again = await client.download(MODEL)
        assert again == operation  # ready: the operation that did it


async def test_two_at_once_are_one_operation_and_both_succeed(
    tmp_path: Path, hub: LocalHub
) -> None:
    hub.add(MODEL, FILES)
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as first,
        AsyncModelMoraClient(url) as second,
    ):
        await first.register(MODEL, "txt2embed")
        one, other = await asyncio.gather(first.download(MODEL), second.download(MODEL))
        assert one.id == other.id
        ends = await asyncio.gather(first.follow_operation(one.id), second.install(MODEL))
        assert (ends[0].status, ends[1].status) == ("succeeded", "ready")
        assert hub.asked("/api/models") == 1
        assert registry.installer.operations.page().total_items == 1


async def test_a_failure_is_told_with_its_code(tmp_path: Path, hub: LocalHub) -> None:
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        AsyncModelMoraClient(url) as client,
    ):
        await client.register(MODEL, "txt2embed")
        with pytest.raises(InstallFailed, match="does not exist"):
            await client.install(MODEL)
        (operation,) = (await client.list_operations(status="failed")).data
        assert operation.error.code == "ARTIFACT_NOT_ACCESSIBLE"
        assert registry.store.version(MODEL).status is VersionStatus.FAILED


# -- events --------------------------------------------------------------------------------------


def parsed(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of each event of a stream."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


async def test_the_stream_ends_with_the_operation(tmp_path: Path, source: str) -> None:
    async with (
        opened(tmp_path / "home") as registry,
        served(registry) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        links = f"/api/v1/operations/{begin(registry, source).id}"
        answer = await http.get(f"{links}/events")
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-cache"
        events = parsed(answer.text)
        assert {name for _, name, _ in events[:-1]} <= {"progress"}
        assert events[-1][:2] == ("end", "end")
        assert events[-1][2] == (await http.get(links)).json()
        # coming back: with any id one gets the state, with the last one a farewell
        back = await http.get(f"{links}/events", headers={"Last-Event-ID": "1"})
        assert [event for _, event, _ in parsed(back.text)] == ["end"]
        assert (
            await http.get(f"{links}/events", headers={"Last-Event-ID": "end"})
        ).status_code == 204
        missing = await http.get("/api/v1/operations/none/events")
        assert missing.json()["error"]["code"] == "OPERATION_NOT_FOUND"


async def test_a_client_that_vanishes_leaves_nothing_running(tmp_path: Path, source: str) -> None:
    async with (
        opened(tmp_path / "home", HANGS) as registry,
        served(registry) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        operation = begin(registry, source)
        # the converter is listened to by tasks of its own, which go on
        await until(lambda: _step(registry) == "load")
        ledger, before = registry.installer.operations, len(asyncio.all_tasks())
        for _ in range(3):
            async with http.stream("GET", f"/api/v1/operations/{operation.id}/events") as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data"):
                        break
                assert ledger.watchers >= 1
        await until(lambda: ledger.watchers == 0)
        await until(lambda: len(asyncio.all_tasks()) <= before)
        assert status_of(registry, operation) is OperationStatus.RUNNING  # it goes on without them


# -- cancelling ----------------------------------------------------------------------------------


async def cancelled(registry: Registry, url: str, operation: Operation) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        answer = await http.delete(f"/api/v1/operations/{operation.id}")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["status"], body["error"]["code"]) == ("cancelled", "CANCELLED")
        again = await http.delete(f"/api/v1/operations/{operation.id}")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "OPERATION_FINISHED")
    version = registry.store.version(MODEL)
    assert version.status is VersionStatus.FAILED
    assert "was cancelled" in (version.error_message or "")
    assert converters() == []
    assert not registry.artefact.exists()
    assert registry.installer.progress(MODEL) is None


@pytest.mark.parametrize("path", ["/api/models", "config.json", "model.safetensors"])
async def test_a_download_is_cancelled(tmp_path: Path, hub: LocalHub, path: str) -> None:
    hub.add(MODEL, FILES)
    hub.stall(path, after=1, times=9)
    async with opened(tmp_path / "home") as registry, served(registry) as url:
        operation = begin(registry)
        await until(hub.stalled.is_set)
        await cancelled(registry, url, operation)
        assert registry.leftovers() == []


async def test_a_conversion_is_cancelled_and_its_download_used_again(
    tmp_path: Path, hub: LocalHub
) -> None:
    hub.add(MODEL, FILES)
    async with opened(tmp_path / "home", HANGS) as registry, served(registry) as url:
        operation = begin(registry)
        await until(lambda: _step(registry) == "load")
        await cancelled(registry, url, operation)
        assert registry.download.exists()
        registry.installer._shop.converter = CONVERTS
        asked = hub.asked("resolve")
        second = registry.installer.install(MODEL)
        assert second.id != operation.id
        assert (await registry.installer.wait(MODEL)).current.status is VersionStatus.READY
        assert hub.asked("resolve") == asked


async def test_waiting_its_turn_it_is_cancelled_too(tmp_path: Path, source: str) -> None:
    async with opened(tmp_path / "home", HANGS) as registry, served(registry) as url:
        for number in range(3):
            registry.register(f"a/other{number}", source_url=source)
            registry.installer.install(f"a/other{number}")
        await until(lambda: any(_step(registry, f"a/other{n}") == "load" for n in range(3)))
        operation = begin(registry, source)
        await until(lambda: _step(registry) == "wait")
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            answer = await http.delete(f"/api/v1/operations/{operation.id}")
        assert answer.json()["status"] == "cancelled"
        assert len(converters()) == 1  # the others are not touched


async def test_before_its_first_step_and_after_its_last(tmp_path: Path, source: str) -> None:
    async with opened(tmp_path / "home") as registry:
        operation = begin(registry, source)
        stopped = await registry.installer.operations.cancel(operation.id)
        assert stopped.status is OperationStatus.CANCELLED
        second = registry.installer.install(MODEL)
        # the last moment: the version is ready, only cleaning up is left
        await until(lambda: registry.store.version(MODEL).status is VersionStatus.READY)
        with pytest.raises(OperationFinished, match="succeeded"):
            await registry.installer.operations.cancel(second.id)
        assert registry.store.version(MODEL).status is VersionStatus.READY
        assert status_of(registry, second) is OperationStatus.SUCCEEDED


async def test_uninstalling_ends_the_operation(tmp_path: Path, source: str) -> None:
    async with opened(tmp_path / "home", HANGS) as registry:
        operation = begin(registry, source)
        await until(lambda: _step(registry) == "load")
        await registry.installer.uninstall(MODEL)
        last = registry.installer.operations.get(operation.id)
        assert last.status is OperationStatus.CANCELLED
        assert last.error is not None
        assert "uninstalled" in last.error.message


# -- restarts ------------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_install import HANGS, MODEL, Registry, _step, arriving, until

async def main():
    registry = Registry(Path(sys.argv[1]), HANGS)
    registry.start()
    registry.register()
    print(registry.installer.install(MODEL).id, flush=True)
    if sys.argv[2] == "model.safetensors":
        await until(lambda: arriving(registry.settings.data_dir, 1000))
    else:
        await until(lambda: str(_step(registry)) == sys.argv[2])
    print("there", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def killed(home: Path, step: str, server_code: str = SERVER) -> str:
    """Kill -9 a server when it says that it is `there`; the id of its operation."""
    command = [sys.executable, "-c", server_code, str(home), step]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True) as server:
        assert server.stdout is not None
        words = []
        for line in server.stdout:  # among the server's log
            if line == "there\n":
                break
            words.append(line.strip())
        else:
            pytest.fail(f"the server ended before it was {step!r}")
        children = psutil.Process(server.pid).children()
        server.kill()
    for child in children:
        wait_until(lambda c=child: not c.is_running() or c.status() == psutil.STATUS_ZOMBIE)
    return next(word for word in words if len(word) == 36 and word.count("-") == 4)


@pytest.mark.parametrize("step", ["resolve", "model.safetensors", "load"])
async def test_kill_9_in_each_phase_and_the_next_server_goes_on(
    tmp_path: Path, hub: LocalHub, step: str
) -> None:
    hub.add(MODEL, FILES)
    if step == "resolve":
        hub.stall("/api/models")
    elif step == "model.safetensors":
        hub.stall(step, after=1000)
    home = tmp_path / "home"
    operation_id = await asyncio.to_thread(killed, home, step)
    asked = hub.asked("resolve")
    async with opened(home) as registry:
        ledger = registry.installer.operations
        assert ledger.get(operation_id).status in (OperationStatus.PENDING, OperationStatus.RUNNING)
        registry.installer.resume()
        model = await registry.installer.wait(MODEL)
        assert model.current.status is VersionStatus.READY, model.current.error_message
        operation = ledger.get(operation_id)
        assert (operation.status, operation.attempts) == (OperationStatus.SUCCEEDED, 2)
        assert ledger.page().total_items == 1
        assert registry.artefact.exists()
    # what had come whole is not fetched again
    assert (hub.asked("resolve") == asked) == (step == "load")


async def test_a_server_that_stops_in_order_is_resumed_as_well(tmp_path: Path, source: str) -> None:
    home = tmp_path / "home"
    async with opened(home, HANGS) as registry:
        operation = begin(registry, source)
        await until(lambda: _step(registry) == "load")
        await registry.installer.close()
        assert status_of(registry, operation) is OperationStatus.PENDING
    async with opened(home) as registry:
        registry.installer.resume()
        await registry.installer.wait(MODEL)
        assert status_of(registry, operation) is OperationStatus.SUCCEEDED


async def test_what_takes_the_server_down_is_not_tried_for_ever(
    tmp_path: Path, source: str
) -> None:
    home = tmp_path / "home"
    async with opened(home, HANGS) as registry:
        operation = begin(registry, source)
        await registry.installer.close()
        for attempt in range(2, MAX_ATTEMPTS + 1):
            registry.start()
            registry.installer.resume()
            assert registry.installer.operations.get(operation.id).attempts == attempt
            await registry.installer.close()
        registry.start()
        registry.installer.resume()
        last = registry.installer.operations.get(operation.id)
        assert last.status is OperationStatus.FAILED
        assert last.error is not None
        assert last.error.code == "INTERRUPTED"
        assert registry.installer.install(MODEL).id != operation.id  # asked for, it is tried


@pytest.mark.parametrize("what", ["removed", "ready", "not resumed"])
async def test_an_operation_without_work_left_is_concluded(
    tmp_path: Path, source: str, what: str
) -> None:
    home = tmp_path / "home"
    async with opened(home, HANGS) as registry:
        operation = begin(registry, source)
        await registry.installer.close()
        if what == "removed":
            registry.store.delete(MODEL)
        registry.start()
        registry.installer._shop.converter = CONVERTS
        if what == "ready":  # it had just become so when the server ended
            await registry.install()
            registry.db.execute("UPDATE operation SET status = 'running', finished_at = NULL")
            registry.start()
        if what == "not resumed":
            await registry.installer.operations.cancel(operation.id)
        registry.installer.resume()
        expected = OperationStatus.SUCCEEDED if what == "ready" else OperationStatus.CANCELLED
        assert status_of(registry, operation) is expected


async def test_a_source_that_went_away_fails_the_resumed_operation(
    tmp_path: Path, source: str
) -> None:
    home = tmp_path / "home"
    async with opened(home, HANGS) as registry:
        operation = begin(registry, source)
        await registry.installer.close()
        shutil.rmtree(source)
        registry.start()
        registry.installer.resume()
        await registry.installer.wait(MODEL)
        last = registry.installer.operations.get(operation.id)
        assert last.status is OperationStatus.FAILED
        assert last.error is not None
        assert last.error.code == "ARTIFACT_NOT_ACCESSIBLE"
