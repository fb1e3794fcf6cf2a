"""The database damaged, replaced or removed under the running server: told, and nothing is lost.

One home is prepared once: an echo model, and so many others that SQLite's cache cannot hold all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from benchmarks.registry import fill
from controlplane.db import open_db
from tests import ready_folders
from tests.hub import wait_until
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

ECHO = "own/echo"
PAGE = 4096


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a stopped server."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    service = Service(home)
    try:
        folder = ready_folders.echo(home.parent / "echo")
        with service.start().client() as client:
            client.install(ECHO, source_url=folder.as_uri(), timeout=60)
        assert service.stop() == 0
        with closing(open_db(service.data_dir / "modelmora.db")) as db:
            fill(db, 2000)
            # as if never installed: their artefacts are not there
            db.execute(
                "UPDATE model_version SET status = 'registered', artefact = NULL"
                " WHERE artefact LIKE '%\"org-%'"
            )
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield home
    finally:
        service.end()


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Iterator[Service]:
    """Running, with the echo model in memory."""
    subprocess.run(["cp", "-a", str(prepared), str(tmp_path / "home")], check=True)
    service = Service(tmp_path / "home").start()
    try:
        assert echo(service) == ["hello"]
        yield service
    finally:
        service.end()


def database(service: Service) -> Path:
    return service.data_dir / "modelmora.db"


def echo(service: Service) -> Any:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["hello"]}]}
    answer = httpx.post(f"{service.url}/v2/models/own--echo/infer", json=body, timeout=30)
    return answer.json()["outputs"][0]["data"] if answer.status_code == 200 else answer.text


def change(service: Service) -> httpx.Response:
    body = {"description": "changed"}
    return httpx.put(f"{service.url}/api/v1/models/{ECHO}", json=body)


def told(service: Service) -> str:
    """What every door says once it is found; the message of the envelope."""
    answer = change(service)
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "DATABASE_UNUSABLE"
    assert error["trace_id"]
    ready = httpx.get(f"{service.url}/health/ready")
    assert ready.status_code == 503
    assert ready.json()["checks"]["triton"] == "ok"
    assert ready.json()["checks"]["database"] in error["message"]
    assert httpx.get(f"{service.url}/health").json()["status"] == "degraded"
    assert httpx.get(f"{service.url}/health/live").status_code == 200
    assert "the database cannot be used any more" in service.log
    assert "modelmora db restore" in service.log
    assert echo(service) == ["hello"]  # what is in memory is served on
    return str(error["message"])


def refused(service: Service) -> str:
    process = service.spawn()
    assert process.wait(30) == 1
    return service.log.strip().splitlines()[-1]


def restored(service: Service, backup: Path) -> None:
    """`modelmora db restore`, and a start with everything that was there."""
    command = [sys.executable, "-m", "controlplane", "db", "restore", str(backup)]
    done = subprocess.run(
        command, env=service.environment(), cwd=service.home, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    service.start()
    assert httpx.get(f"{service.url}/api/v1/models/{ECHO}").status_code == 200
    assert change(service).status_code == 200
    assert echo(service) == ["hello"]


def test_damaged_pages(own: Service, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    command = [sys.executable, "-m", "controlplane", "db", "backup", str(backup)]
    subprocess.run(command, env=own.environment(), cwd=own.home, check=True, capture_output=True)
    with database(own).open("r+b") as file:
        pages = os.fstat(file.fileno()).st_size // PAGE
        file.seek(20 * PAGE)
        file.write(os.urandom((pages - 20) * PAGE))
    answer = httpx.get(f"{own.url}/api/v1/models", params={"search_text": "bert", "page": 9})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "DATABASE_UNUSABLE"
    assert "is damaged" in told(own)
    assert own.log.count("the database cannot be used any more") == 1
    assert own.stop() == 0
    assert "is damaged or not a database" in refused(own)
    restored(own, backup)


def test_a_removed_file(own: Service) -> None:
    assert change(own).status_code == 200
    for path in own.data_dir.glob("modelmora.db*"):
        path.unlink()
    wait_until(lambda: "the database cannot be used any more" in own.log)  # by itself
    (rescued,) = (own.data_dir / "backups").glob("rescued-*.db")
    message = told(own)
    assert "was removed" in message
    assert str(rescued) in message
    assert httpx.get(f"{own.url}/api/v1/models").json()["pagination"]["total_items"] == 2001
    assert own.stop() == 0
    # an empty registry would have all artefacts swept away
    assert str(rescued) in refused(own)
    restored(own, rescued)
    with own.client() as client:
        assert client.get(ECHO).description == "changed"
