"""kill -9 of the real server in each phase of install, delete and migrate; the next one recovers.

The places are named in the source (`tests/killed_server.py`); nothing of the product knows of them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from controlplane.client import ModelMoraClientError
from controlplane.db import downgrade
from controlplane.registry.operation import MAX_ATTEMPTS
from tests.hub import LocalHub
from tests.prepared import TINY, copied
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

NAME = "tests--tiny-bert"
ROOT = Path(__file__).parents[2]
REGISTRY = "controlplane.registry"
# Where, and whether the weights have to come again then.
INSTALL = {
    "resolve": ("hub:Hub._resolve:after", True),
    "first bytes": ("file_intake:FileIntake.write:before:2", True),
    "a file is whole": ("blobs:BlobCache.adopt:after", True),
    "before the folder is whole": ("intake:Intake.finish:before", False),
    "after the folder is whole": ("intake:Intake.finish:after", False),
    "converted": ("installation:convert:after", False),
    "pinned": ("versions:VersionStore.pin:after", False),
    "published": ("repository:ModelRepository.publish:after", False),
    "ready": ("versions:VersionStore.mark_ready:after", False),
}
DELETE = {
    "before": "store:ModelStore.delete:before",
    "rows are gone": "store:ModelStore.delete:after",
    "artefact is gone": "repository:ModelRepository.remove:after",
    "download is gone": "blobs:BlobCache.remove_download:after",
}


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        local.add(TINY, tiny)
        yield local


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "own", forking=True)
    yield service
    service.end()


def armed(service: Service, place: str) -> Service:
    service.program = (str(ROOT / "tests" / "killed_server.py"), place)
    return service


def killed(service: Service, family: list[psutil.Process]) -> None:
    """Wait for the server to have killed itself; what it had started goes with it."""
    assert service.process is not None
    assert service.process.wait(60) == -signal.SIGKILL, service.log[-3000:]
    psutil.wait_procs(family, timeout=15)
    service.program = ("-m", "controlplane")


def check(service: Service) -> None:
    """The database and its files are sound and agree, says `db check`."""
    command = [sys.executable, "-m", "controlplane", "db", "check"]
    done = subprocess.run(
        command, env=service.environment(), cwd=service.home, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def in_turn(phases: Sequence[str]) -> Sequence[Sequence[str]]:
    """As many as one installation may be interrupted: twice, then it has to come to its end."""
    kills = MAX_ATTEMPTS - 1
    return [phases[first : first + kills] for first in range(0, len(phases), kills)]


@pytest.mark.torch
@pytest.mark.parametrize("phases", in_turn(list(INSTALL)), ids=" - ".join)
def test_install(own: Service, hub: LocalHub, phases: Sequence[str]) -> None:
    came: list[int] = []
    operation_id = ""
    for phase in phases:
        place, again = INSTALL[phase]
        armed(own, f"{REGISTRY}.{place}").start()
        family = own.family()
        if not operation_id:
            with own.client() as client:
                client.register(TINY, task_type="txt2embed")
                operation_id = client.download(TINY).id
        killed(own, family)
        came += [] if again else [hub.asked("model.safetensors")]
    own.start()
    with own.client() as client:
        ended = client.follow_operation(operation_id, timeout=120)
        assert ended.status == "succeeded", ended.error
        assert client.get(TINY).status == "ready"
        assert len(client.embed(TINY, "hello")) > 0
        assert client.verify_cache().damaged == ()
    assert all(times == hub.asked("model.safetensors") for times in came)
    assert list((own.model_repository / ".staging").glob("*")) == []
    assert [path.name for path in (own.data_dir / "downloads" / NAME).iterdir()] == ["1"]
    assert own.stop() == 0
    check(own)


@pytest.fixture
def copy(installed_home: Path, tmp_path: Path) -> Iterator[Service]:
    service = Service(copied(installed_home, tmp_path / "home"))
    yield service
    service.end()


@pytest.mark.torch
@pytest.mark.parametrize("phase", DELETE)
def test_delete(copy: Service, phase: str) -> None:
    armed(copy, f"{REGISTRY}.{DELETE[phase]}").start()
    family = copy.family()

    def delete() -> None:
        with copy.client() as client, pytest.raises(ModelMoraClientError):
            client.delete(TINY)

    deleting = threading.Thread(target=delete)
    deleting.start()
    killed(copy, family)
    deleting.join(30)
    copy.start()
    with copy.client() as client:
        left = [model.model_id for model in client.list().data]
        assert left == ([TINY] if phase == "before" else [])
        if phase == "before":
            assert len(client.embed(TINY, "hello")) > 0
            client.delete(TINY, force=True)
        assert client.cache().blobs == ()
    assert not (copy.model_repository / NAME).exists()
    assert not (copy.data_dir / "downloads" / NAME).exists()
    assert copy.stop() == 0
    check(copy)


@pytest.mark.torch
@pytest.mark.parametrize(
    "place",
    [
        "controlplane.db:before_migration:after",
        "controlplane.migrations.m0011_remote_code:up:after",
    ],
)
def test_migrate(copy: Service, place: str) -> None:
    database = copy.data_dir / "modelmora.db"
    downgrade(database, to="m0005_pinned")
    if "migrations" not in place:
        process = armed(copy, place).spawn()
        assert process.wait(60) == -signal.SIGKILL, copy.log[-3000:]
    else:  # a step is known by its function from the beginning
        code = (
            f"import os, sys, importlib\nm = importlib.import_module({place.split(':')[0]!r})\n"
            "up = m.up\nm.up = lambda db: (up(db), os.kill(os.getpid(), 9))\n"
            "from controlplane.cli.main import run\nrun(['serve'])"
        )
        copy.program = ("-c", code)
        assert copy.spawn().wait(60) == -signal.SIGKILL, copy.log[-3000:]
    copy.program = ("-m", "controlplane")
    with copy.start().client() as client:
        assert [model.model_id for model in client.list().data] == [TINY]
        assert len(client.embed(TINY, "hello")) > 0
    assert copy.stop() == 0
    check(copy)
