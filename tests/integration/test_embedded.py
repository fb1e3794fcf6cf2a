"""The embedded server: real processes, killed in every way, and nothing left of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import msgspec
import numpy as np
import psutil
import pytest
import structlog
from tritonclient.grpc import service_pb2, service_pb2_grpc

from controlplane.errors import StartupError
from controlplane.triton import large_requests, processes
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.external import ExternalTriton
from controlplane.triton.failures import ModelFailed, TritonError, TritonUnavailable
from controlplane.triton.installation import Host
from tests.triton_models import TritonModels
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

pytestmark = pytest.mark.triton

TEXT = np.array([["hé"], [""]], dtype=object)


class Own:
    """A server of the test's own, that it may kill."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.models = TritonModels(folder / "repository")
        self.server = EmbeddedTriton(folder / "repository", folder / "state", **options)
        self.seen: list[str] = []
        self.server.on_lost.append(lambda: self.seen.append("lost"))
        self.server.on_restored.append(lambda: self.seen.append("restored"))

    async def load_echo(self) -> str:
        name = self.models.echo()
        client = TritonClient(self.server.endpoints)
        await client.load(name, timeout=60)
        await client.close()
        return name

    async def infer(self, name: str) -> dict[str, Any]:
        client = TritonClient(self.server.endpoints)
        try:
            return await client.infer(name, 1, {"text_input": TEXT}, ["text_output"], timeout=60.0)
        finally:
            await client.close()

    def leftovers(self) -> list[Any]:
        """Processes and shared memory of this instance."""
        prefix = self.server.shared_memory_prefix
        files = [path.name for path in processes.SHARED_MEMORY.glob(f"{prefix}*")]
        return [*processes.find_marked(prefix), *files]


@pytest.fixture
def hang_timeout() -> float:
    """Seconds; so many that a busy machine lets no test's server seem to hang."""
    return 30.0


@pytest.fixture
async def own(tmp_path: Path, hang_timeout: float) -> AsyncIterator[Own]:
    own = Own(tmp_path, hang_timeout=hang_timeout)
    await own.server.start()
    yield own
    await own.server.stop()
    assert own.leftovers() == []


async def test_serves_an_echo_model(triton: Any, triton_client: TritonClient) -> None:
    name = triton.models.echo()
    await triton_client.load(name, timeout=30)
    answer = await triton_client.infer(name, 1, {"text_input": TEXT}, ["text_output"], timeout=60)
    assert answer["text_output"].tolist() == [["hé".encode()], [b""]]
    assert len(triton.server.stub_pids(name, 1)) == 1
    assert triton.server.stub_pids(name, 2) == []


async def test_large_requests_are_answered_and_refused_as_small_ones_are(
    triton: Any, triton_client: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, threads = large_requests.encoded, set[int]()

    def observed(*given: Any) -> bytes:
        threads.add(threading.get_ident())
        return encoded(*given)

    monkeypatch.setattr(large_requests, "encoded", observed)
    name = triton.models.echo()
    await triton_client.load(name, timeout=30)
    text = np.array([["é".encode() * 200_000], [b""], [b"x"]], dtype=object)
    small = np.array([[b"x"]], dtype=object)
    answer = await triton_client.infer(name, 1, {"text_input": text}, ["text_output"], timeout=60)
    assert answer["text_output"].tolist() == text.tolist()
    wrong: list[tuple[str, str]] = [("nobody", "text_input"), (name, "other_input")]
    for model, tensor in wrong:
        refusals = []
        for array in (text, small):
            with pytest.raises(TritonError) as refused:
                await triton_client.infer(model, 1, {tensor: array}, ["text_output"], timeout=60)
            refusals.append((type(refused.value), str(refused.value)))
        assert refusals[0] == refusals[1]
    assert threads
    assert threading.get_ident() not in threads


async def test_models_run_in_our_python_with_our_packages(
    triton: Any, triton_client: TritonClient
) -> None:
    report = """
    import sys, struct, backends, numpy, tokenizers
    facts = sys.prefix, sys.version, os.path.realpath(backends.__file__)
    text = np.array([[fact] for fact in facts], dtype=object)
    """
    name = triton.models.write(execute=report)
    await triton_client.load(name, timeout=30)
    answer = await triton_client.infer(
        name, 1, {"text_input": np.array([["?"]], dtype=object)}, ["text_output"], timeout=60
    )
    prefix, version, package = (row[0].decode() for row in answer["text_output"])
    assert prefix == sys.prefix
    assert version == sys.version
    assert Path(package).parent == Path(__file__).parents[2] / "backends"


async def test_control_apis_are_refused_without_the_secret_over_http(triton: Any) -> None:
    url = triton.endpoints.http_url
    async with httpx.AsyncClient(base_url=url) as http:
        for method, path in (
            ("POST", "/v2/repository/index"),
            ("POST", "/v2/repository/models/x/load"),
            ("POST", "/v2/repository/models/x/unload"),
            ("GET", "/v2/systemsharedmemory/status"),
            ("GET", "/v2/cudasharedmemory/status"),
            ("GET", "/v2/logging"),
            ("GET", "/v2/trace/setting"),
        ):
            answer = await http.request(method, path)
            assert "restricted" in answer.text, path
        answer = await http.post("/v2/repository/index", headers=triton.endpoints.http_headers)
        assert answer.status_code == 200
        assert (await http.get("/v2")).status_code == 200
        metrics = await http.get(triton.endpoints.metrics_url)
        assert "nv_cpu_memory_used_bytes" in metrics.text


async def test_control_apis_are_refused_without_the_secret_over_grpc(triton: Any) -> None:
    async with grpc.aio.insecure_channel(triton.endpoints.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call, request in (
            (stub.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
            (stub.RepositoryModelLoad, service_pb2.RepositoryModelLoadRequest(model_name="x")),
            (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest()),
            (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
            (stub.CudaSharedMemoryStatus, service_pb2.CudaSharedMemoryStatusRequest()),
            (stub.LogSettings, service_pb2.LogSettingsRequest()),
            (stub.TraceSetting, service_pb2.TraceSettingRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="restricted"):
                await call(request)
        metadata = triton.endpoints.grpc_metadata
        assert await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=metadata)


async def test_the_secret_does_not_show(triton: Any) -> None:
    secret = triton.endpoints.http_headers["modelmora-control"]
    assert secret not in repr(triton.endpoints)


async def test_listens_on_loopback_only(triton: Any) -> None:
    listening = [
        c.laddr.ip
        for c in psutil.Process(triton.server.pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1"}


async def test_killed_server_comes_back_at_the_same_address(own: Own) -> None:
    name = await own.load_echo()
    before, pid = own.server.endpoints, own.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: own.seen == ["lost", "restored"])
    assert own.server.state == "ready"
    assert own.server.endpoints == before
    assert own.server.pid not in (None, pid)
    client = TritonClient(own.server.endpoints)
    await client.load(name, timeout=60)
    await client.close()
    assert await own.infer(name)


async def test_state_while_down(own: Own) -> None:
    states: list[Any] = []
    own.server.on_lost.append(lambda: states.append((own.server.state, own.server.pid)))
    assert own.server.kill()
    await eventually(lambda: "restored" in own.seen)
    assert states == [("lost", None)]


async def test_stubs_of_a_killed_server_are_gone_before_the_next_one_starts(own: Own) -> None:
    name = await own.load_echo()
    (stub,) = own.server.stub_pids(name, 1)
    assert own.server.pid is not None
    os.kill(own.server.pid, signal.SIGKILL)
    await eventually(lambda: "restored" in own.seen)
    assert not alive([stub])
    assert len(own.leftovers()) == 1  # the new server


@pytest.mark.parametrize("hang_timeout", [3.0])
async def test_hanging_server_is_killed_and_restarted(own: Own) -> None:
    assert own.server.pid is not None
    os.kill(own.server.pid, signal.SIGSTOP)
    await eventually(lambda: own.seen == ["lost", "restored"])


async def test_requests_wait_from_the_moment_on_that_somebody_stops_the_server(own: Own) -> None:
    states: list[Any] = []
    own.server.on_lost.append(lambda: states.append((own.server.state, own.server.pid)))
    pid = own.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: own.seen == ["lost", "restored"])
    assert states == [("lost", pid)]  # told before it had ended
    assert own.server.pid not in (None, pid)


async def test_dead_stub_fails_requests_and_leaves_nothing_at_stop(own: Own) -> None:
    name = await own.load_echo()
    assert own.server.kill_stubs(name, 1) == 1
    with pytest.raises((ModelFailed, TritonUnavailable)):
        await own.infer(name)


async def test_stop_lets_running_requests_finish(own: Own, tmp_path: Path) -> None:
    started = tmp_path / "started"
    name = own.models.write(execute=f"open({str(started)!r}, 'w').close(); time.sleep(1)")
    client = TritonClient(own.server.endpoints)
    await client.load(name, timeout=60)
    await client.close()
    request = asyncio.ensure_future(own.infer(name))
    await eventually(started.exists)
    await own.server.stop()
    assert (await request)["text_output"].tolist() == [["hé".encode()], [b""]]


async def test_stop_during_a_hanging_load(own: Own) -> None:
    name = own.models.hanging()
    client = TritonClient(own.server.endpoints)
    load = asyncio.ensure_future(client.load(name, timeout=60))
    await eventually(lambda: own.server.stub_pids(name, 1))
    await own.server.stop()
    with pytest.raises((ModelFailed, TritonUnavailable)):
        await load
    await client.close()


async def test_running_calls_fail_when_their_channel_is_replaced(own: Own, tmp_path: Path) -> None:
    started = tmp_path / "started"
    name = own.models.write(execute=f"open({str(started)!r}, 'w').close(); time.sleep(2)")
    client = TritonClient(own.server.endpoints)
    await client.load(name, timeout=60)
    busy = asyncio.ensure_future(
        client.infer(name, 1, {"text_input": TEXT}, ["text_output"], timeout=60)
    )
    await eventually(started.exists)
    client.reconnect(own.server.endpoints)
    with pytest.raises(TritonUnavailable):
        await busy
    assert await client.live()
    busy = asyncio.ensure_future(
        client.infer(name, 1, {"text_input": TEXT}, ["text_output"], timeout=60)
    )
    busy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await busy
    await client.close()


async def test_taken_ports_are_replaced(own: Own) -> None:
    before = own.server.endpoints
    port = int(before.http_url.rpartition(":")[2])
    assert own.server.kill()
    # Between the death and the restart somebody else takes the port.
    taken = asyncio.Event()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def squat() -> None:
            squatter.bind(("127.0.0.1", port))
            squatter.listen()
            taken.set()

        own.server.on_lost.append(squat)
        await eventually(lambda: "restored" in own.seen)
        assert taken.is_set()
        assert own.server.endpoints.http_url != before.http_url
    client = TritonClient(before)
    client.reconnect(own.server.endpoints)
    assert await client.index() == []
    await client.close()


PARENT = """
import asyncio, json, os, sys
from pathlib import Path
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton

async def main():
    folder, name = Path(sys.argv[1]), sys.argv[2]
    server = EmbeddedTriton(folder / "repository", folder / "state")
    await server.start()
    client = TritonClient(server.endpoints)
    if name:
        loading = asyncio.ensure_future(client.load(name, timeout=100))
        while not server.stub_pids(name, 1):
            await asyncio.sleep(0.02)
    print(json.dumps([server.pid, server.stub_pids(name, 1)]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def alive(pids: list[int]) -> list[int]:
    """Those that run; where nobody reaps orphans, they stay as zombies."""
    running = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                running.append(pid)
    return running


def start_parent(folder: Path, model: str) -> tuple[subprocess.Popen[str], int, list[int]]:
    """A control plane in another process, with a model in it; its server's and stubs' pids."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), model], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    line = next(line for line in parent.stdout if line.startswith("["))
    server, stubs = json.loads(line)
    return parent, server, stubs


def kill_parent(parent: subprocess.Popen[str]) -> None:
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()


async def test_server_ends_with_its_killed_parent(tmp_path: Path) -> None:
    name = TritonModels(tmp_path / "repository").echo()
    parent, server, stubs = start_parent(tmp_path, name)
    kill_parent(parent)
    await eventually(lambda: not alive([server, *stubs]))
    prefix = processes.instance_prefix(tmp_path / "state")
    assert not list(processes.SHARED_MEMORY.glob(f"{prefix}*"))


async def test_start_ends_the_orphans_of_a_killed_parent(tmp_path: Path) -> None:
    # A server with a load that hangs does not heed the signal that its parent's death sends.
    name = TritonModels(tmp_path / "repository").hanging()
    parent, server, stubs = start_parent(tmp_path, name)
    kill_parent(parent)
    assert alive([server])
    own = Own(tmp_path)
    await own.server.start()
    assert not alive([server, *stubs])
    assert len(own.leftovers()) == 1
    await own.server.stop()
    assert own.leftovers() == []


async def test_a_copied_directory_is_another_instance(own: Own, tmp_path: Path) -> None:
    name = await own.load_echo()
    pid = own.server.pid
    shutil.copytree(tmp_path / "state", tmp_path / "copy" / "state", symlinks=True)
    shutil.copytree(tmp_path / "repository", tmp_path / "copy" / "repository")
    copy = Own(tmp_path / "copy")
    await copy.server.start()
    try:
        client = TritonClient(copy.server.endpoints)
        await client.load(name, timeout=60)
        await client.close()
        for each in (own, copy):
            assert (await each.infer(name))["text_output"][0, 0] == "hé".encode()
            assert len(each.leftovers()) > 1
    finally:
        await copy.server.stop()
    assert copy.leftovers() == []
    assert own.server.pid == pid
    assert own.seen == []
    assert (await own.infer(name))["text_output"][0, 0] == "hé".encode()


async def test_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    own = Own(tmp_path)
    start = asyncio.ensure_future(own.server.start())
    await eventually(lambda: own.server.pid)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert own.leftovers() == []
    assert own.server.state == "stopped"


async def test_start_and_stop_again(tmp_path: Path) -> None:
    own = Own(tmp_path)
    await own.server.stop()
    for _ in range(2):
        await own.server.start()
        await own.server.start()
        assert own.server.state == "ready"
        await own.server.stop()
        assert own.server.state == "stopped"
    assert own.seen == []
    assert own.leftovers() == []


async def test_a_server_that_has_begun_is_the_one_that_starts(tmp_path: Path) -> None:
    own = Own(tmp_path)
    await own.server.begin()
    begun = own.server.pid
    assert begun is not None
    assert own.server.state == "starting"
    await own.server.begin()
    await own.server.start()
    assert (own.server.pid, own.server.state) == (begun, "ready")
    await own.server.stop()
    assert own.leftovers() == []


async def test_a_begin_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    own = Own(tmp_path)
    await own.server.begin()
    await own.server.stop()
    assert (own.server.pid, own.server.state) == (None, "stopped")
    assert own.leftovers() == []


async def test_server_that_does_not_start_has_the_last_word(tmp_path: Path) -> None:
    package = tmp_path / "pytriton"
    for part in ("bin", "backends/python", "python_backend_stubs/3.11"):
        (package / "tritonserver" / part).mkdir(parents=True)
    (package / "tritonserver/python_backend_stubs/3.11/triton_python_backend_stub").touch()
    binary = package / "tritonserver/bin/tritonserver"
    binary.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n", encoding="utf-8")
    binary.chmod(0o755)
    host = msgspec.structs.replace(Host.current(), package=package, python=(3, 11))
    own = Own(tmp_path, host=host)
    with pytest.raises(StartupError, match="no such thing"):
        await own.server.start()
    assert own.server.state == "stopped"
    assert own.leftovers() == []


async def test_comes_back_when_restarts_fail_at_first(own: Own, tmp_path: Path) -> None:
    stub_home, away = tmp_path / "state" / "stub_home", tmp_path / "away"
    stub_home.rename(away)  # the folder that the server is started in
    with structlog.testing.capture_logs() as logs:
        assert own.server.kill()
        await eventually(lambda: logged(logs, "Triton did not come back"))
        away.rename(stub_home)
        await eventually(lambda: own.seen == ["lost", "restored"])


def logged(logs: Sequence[Mapping[str, Any]], event: str) -> bool:
    return any(log["event"] == event for log in logs)


async def test_unwritable_state_directory(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    server = EmbeddedTriton(tmp_path / "repository", blocker / "state")
    with pytest.raises(StartupError, match="cannot be written"):
        await server.start()


async def test_runs_on_uvloop(tmp_path: Path) -> None:
    script = PARENT.replace("asyncio.run(main())", "import uvloop; uvloop.run(main())")
    script = script.replace("await asyncio.sleep(600)", "await client.close(); await server.stop()")
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", script, str(tmp_path), ""],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


async def test_external_server_is_watched(tmp_path: Path) -> None:
    own = Own(tmp_path)
    await own.server.start()
    await own.load_echo()
    seen: list[str] = []
    external = ExternalTriton(
        f"grpc://{own.server.endpoints.grpc_url}",
        own.server.endpoints.http_url,
        secret=next(iter(own.server.endpoints.http_headers.items())),
        start_timeout=5,
        poll_seconds=0.1,
    )
    external.on_lost.append(lambda: seen.append(external.state))
    external.on_restored.append(lambda: seen.append(external.state))
    await external.start()
    assert external.state == "ready"
    assert external.pid is None
    assert not external.kill()
    own.server.kill()  # it may be back between two looks
    await eventually(lambda: seen == ["lost", "ready"])
    await own.server.stop()
    await eventually(lambda: seen == ["lost", "ready", "lost"])
    await external.stop()
    assert external.state == "stopped"


async def test_external_server_that_comes_later(own: Own) -> None:
    seen: list[str] = []
    grpc_url = own.server.endpoints.grpc_url
    await own.server.stop()
    external = ExternalTriton(grpc_url, start_timeout=0.1, poll_seconds=0.1)
    external.on_lost.append(lambda: seen.append(external.state))
    external.on_restored.append(lambda: seen.append(external.state))
    await external.start()
    assert external.state == "lost"
    await own.server.start()
    await eventually(lambda: seen == ["ready"])
    await external.stop()
