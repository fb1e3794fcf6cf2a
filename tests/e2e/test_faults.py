"""Start, stop, and what breaks in between: nothing is left behind, the next start recovers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from controlplane.client import InstallFailed
from controlplane.triton.processes import find_marked, instance_prefix
from tests.prepared import TINY, copied
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "own")
    yield service
    service.end()


@pytest.fixture
def installed(tmp_path: Path, installed_home: Path) -> Iterator[Service]:
    """A stopped server with a model."""
    service = Service(copied(installed_home, tmp_path / "own"))
    yield service
    service.end()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def shared_memory(service: Service) -> list[str]:
    """Files in /dev/shm of this service's Triton; other tests run beside this one."""
    prefix = instance_prefix(service.data_dir / "triton")
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]  # noqa: PTH208


def embed(service: Service, text: str = "hello") -> np.ndarray:  # type: ignore[type-arg]
    client = triton_grpc.InferenceServerClient(service.grpc_url)
    tensor = triton_grpc.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    try:
        vectors: np.ndarray = client.infer(TINY, [tensor]).as_numpy("embedding")  # type: ignore[type-arg]
        return vectors
    finally:
        client.close()


def refused(service: Service) -> str:
    """The one line with which a server that cannot start ends; its exit code is 1 or 2."""
    process = service.spawn()
    assert process.wait(60) in {1, 2}
    line = service.log.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_an_installed_model_survives_a_restart(installed: Service) -> None:
    installed.start()
    first = embed(installed)
    assert installed.stop() == 0
    assert shared_memory(installed) == []
    installed.start()
    assert np.allclose(embed(installed), first, atol=1e-6)
    assert installed.stop() == 0
    assert shared_memory(installed) == []


def test_kill_9_of_the_control_plane_leaves_nothing_that_the_next_start_does_not_clear(
    installed: Service,
) -> None:
    installed.start()
    embed(installed)
    family = installed.family()
    installed.kill()
    installed.start()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    embed(installed)
    assert installed.stop() == 0
    assert shared_memory(installed) == []


def test_kill_9_of_triton_is_healed(installed: Service) -> None:
    installed.start()
    embed(installed)
    (triton,) = [p for p in installed.family() if p.name() == "tritonserver"]
    triton.kill()
    until(lambda: "server_lost" in events_of(installed))
    assert embed(installed).shape[0] == 1  # it waited for the new server and loaded the model there
    assert installed.stop() == 0


def events_of(service: Service) -> str:
    import sqlite3

    with sqlite3.connect(f"file:{service.data_dir}/modelmora.db?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT event_type, payload FROM event_store").fetchall()
    connection.close()
    return "\n".join(f"{kind} {payload}" for kind, payload in rows)


def test_kill_9_while_installing_is_made_up_for_by_the_next_server(
    own: Service, tiny: Path
) -> None:
    own.start()
    with own.client() as client:
        client.register(TINY, task_type="txt2embed", source_url=tiny.as_uri())
        operation = client.download(TINY)
        until(lambda: client.get(TINY).status == "exporting")
        until(lambda: any("converters" in " ".join(p.cmdline()) for p in own.family()))
    family = own.family()
    own.kill()
    psutil.wait_procs(family, timeout=15)
    own.start()
    with own.client() as client:
        ended = client.follow_operation(operation.id, timeout=120)
        assert (ended.status, ended.attempts) == ("succeeded", 2)
        assert client.get(TINY).status == "ready"
    until(lambda: not list((own.model_repository / ".staging").glob("*")))
    assert embed(own).shape == (1, embed(own).shape[1])
    assert own.stop() == 0


def test_a_converter_that_is_killed_fails_the_install_with_the_reason(
    own: Service, tiny: Path
) -> None:
    own.start()

    def kill_converter() -> None:
        def converters() -> list[psutil.Process]:
            return [p for p in own.family() if "converters" in " ".join(p.cmdline())]

        until(lambda: bool(converters()))
        converters()[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_converter)
    killer.start()
    with own.client() as client, pytest.raises(InstallFailed, match="SIGKILL"):
        client.install(TINY, source_url=tiny.as_uri(), timeout=60)
    killer.join()
    assert own.stop() == 0


def test_a_second_server_on_the_same_data_is_refused(own: Service) -> None:
    own.start()
    second = Service(own.home)
    line = refused(second)
    assert "Another ModelMora is running" in line
    with own.client() as client:
        assert client.status().triton["state"] == "ready"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused(Service(tmp_path / "http", PORT=port))
        assert port in refused(Service(tmp_path / "grpc", GRPC_PORT=port))


def test_an_unusable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = Service(tmp_path / "home", DATA_DIR=str(tmp_path / "file" / "below"))
    assert "data directory" in refused(service)


def test_a_host_beyond_loopback_is_refused_unless_allowed(tmp_path: Path) -> None:
    line = refused(Service(tmp_path, HOST="0.0.0.0"))
    assert "MODELMORA_ALLOW_UNAUTHENTICATED_NETWORK" in line


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.data_dir.mkdir(parents=True)
    (service.data_dir / "modelmora.db").write_bytes(b"this is no database " * 1000)
    assert "modelmora.db" in refused(service)
    # Triton had begun to start by then
    assert find_marked(instance_prefix(service.data_dir / "triton")) == []
    assert shared_memory(service) == []


def test_sigterm_during_the_start_ends_it_cleanly(own: Service) -> None:
    process = own.spawn()
    until(lambda: "tritonserver" in {p.name() for p in own.family()})
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_sigterm_lets_running_requests_end(installed: Service) -> None:
    installed.start()
    embed(installed)
    answers: list[int] = []

    def ask() -> None:
        body = {"input_data": {"text": ["a long text " * 200] * 1024}}
        url = f"{installed.url}/api/v1/infer/{TINY}"
        answers.append(httpx.post(url, json=body, timeout=60).status_code)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    with installed.client() as client:
        until(lambda: sum(m.active_requests or 0 for m in client.status().loaded_models) == 4)
    assert installed.stop() == 0
    for thread in asking:
        thread.join()
    assert answers == [200] * 4


def test_the_command_line_says_how_to_start_a_server_that_is_not_there(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "controlplane", "list"],
        capture_output=True,
        text=True,
        env={**os.environ, "MODELMORA_URL": "http://127.0.0.1:9"},
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 4
    assert re.search(r"modelmora serve", run.stderr)
    assert run.stderr.count("\n") <= 2
