"""Two machines and one lock: what the first has locked, the second installs bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests import models
from tests.hub import LocalHub
from tests.programs import program
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.torch]

MODEL, OTHER = "org/tiny", "org/other"
TEXTS = ["the cat plays in the house", "how are you?", "Привет, как дела?"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models of different weights."""
    folder = tmp_path_factory.mktemp("sources")
    models.tiny_bert(folder / "one")
    models.tiny_distilbert(folder / "two")
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as local:
        yield local


@pytest.fixture(scope="module")
def environment(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


@pytest.fixture(scope="module")
def machines(
    environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Service]]:
    """Two servers with nothing in common but the hub."""
    first, second = (
        Service(tmp_path_factory.mktemp(name), forking=True) for name in ("first", "second")
    )
    try:
        yield first.start(), second.start()
    finally:
        first.end()
        second.end()


class Shell:
    """The command line in a directory of its own, towards one machine."""

    def __init__(self, machine: Service) -> None:
        self.machine = machine
        self.home = machine.home

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "controlplane", *arguments],
            cwd=self.home,
            env={**os.environ, "MODELMORA_URL": self.machine.url, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).splitlines()[0])


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def downloads(machine: Service) -> dict[str, str]:
    return digests(machine.data_dir / "downloads" / "org--tiny" / "1")


def artefact(machine: Service) -> list[dict[str, Any]]:
    path = machine.model_repository / "org--tiny" / "1" / "manifest.json"
    listed: list[dict[str, Any]] = json.loads(path.read_bytes())["files"]
    return listed


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def vectors(machine: Service, version: str | None = None) -> Any:
    with machine.client() as client:
        return np.array(client.embed(MODEL, TEXTS, version=version))


def test_two_machines_that_sync_one_lock_hold_the_same_bytes(
    machines: tuple[Service, Service], hub: LocalHub, sources: Path
) -> None:
    first, second = machines
    one, two = Shell(first), Shell(second)
    hub.add(MODEL, sources / "one")
    locked = hub._repositories[MODEL].refs["main"]
    one("install", MODEL)
    assert "is written: 1 model." in one("lock", "--env", "staging")
    text = (first.home / "modelmora.lock").read_bytes()
    assert "is up to date" in one("lock")
    assert (first.home / "modelmora.lock").read_bytes() == text
    assert "is up to date" in one("lock", "--check")

    # the branch moves on; the lock does not
    hub.add(MODEL, {**files(sources / "one"), "README.md": b"newer"})
    (second.home / "modelmora.lock").write_bytes(text)
    assert "install" in two("sync", "--dry-run")
    assert two.json("list")["data"] == []
    assert "install" in two("sync", "--frozen", code=1)
    assert two.json("list")["data"] == []
    synced = two.json("sync")
    assert (synced["status"], synced["drift"]) == ("succeeded", [])
    info = two.json("info", MODEL)
    assert (info["version"], info["revision"]) == ("main", locked)
    assert downloads(first) == downloads(second)

    assert "Nothing to do" in two("sync", "--dry-run")
    two("sync", "--frozen")
    assert "is up to date" in two("lock", "--check")
    assert "is up to date" in two("lock")
    assert (second.home / "modelmora.lock").read_bytes() == text
    both = vectors(first), vectors(second)
    assert np.sum(both[0] * both[1], axis=1).min() > 0.9999
    # the same converter on the same processor: even the artefacts are the same
    assert artefact(first) == artefact(second)


def test_verify_names_every_file_that_is_not_as_locked(machines: tuple[Service, Service]) -> None:
    second = machines[1]
    two = Shell(second)
    assert "is as locked" in two("verify")
    source = second.data_dir / "downloads" / "org--tiny" / "1" / "config.json"
    made = second.model_repository / "org--tiny" / "1" / "tokenizer.json"
    kept = {path: path.read_bytes() for path in (source, made)}
    try:
        source.write_bytes(kept[source] + b" ")
        made.unlink()
        (source.parent / "stray").write_bytes(b"x")
        found = two.json("verify", code=1)
        assert [(d["part"], d["path"], d["problem"]) for d in found["drift"]] == [
            ("source", "config.json", "changed"),
            ("source", "stray", "unexpected"),
            ("artefact", "tokenizer.json", "missing"),
        ]
        assert "config.json is changed: expected sha256:" in two("verify", code=1)
        assert two.json("sync", "--frozen", code=1)["status"] == "failed"
        done = two.json("sync")
        assert [(s["action"], s["state"]) for s in done["steps"]] == [("repair", "done")]
        assert {path: path.read_bytes() for path in kept} == kept
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert two.json("verify", "--name", "default")["status"] == "succeeded"
    assert len(vectors(second)) == len(TEXTS)


def test_a_locked_model_is_kept_unless_forced(machines: tuple[Service, Service]) -> None:
    two = Shell(machines[1])
    assert "locked by default" in two("uninstall", MODEL, code=5)
    two("lock", "deactivate", "default")
    two("lock", "activate", "default")
    two("unload", MODEL)
    two("uninstall", MODEL, "--force")
    assert "is locked but not installed" in two("lock", "--check", code=1)
    two("sync")
    assert two.json("info", MODEL)["status"] == "ready"


def test_where_a_name_stands_for_other_bytes_the_commit_is_the_name(
    machines: tuple[Service, Service], hub: LocalHub, sources: Path, tmp_path: Path
) -> None:
    first, second = machines
    one, two = Shell(first), Shell(second)
    locked = hub.add(OTHER, sources / "one")
    one("install", OTHER)
    one("lock", "--env", "staging")
    hub.add(OTHER, sources / "two")
    two("install", OTHER)
    (second.home / "modelmora.lock").write_bytes((first.home / "modelmora.lock").read_bytes())
    assert "the locked ones get this name" in two("sync", "--dry-run")
    two("sync")
    info = two.json("info", OTHER)
    assert (info["version"], info["revision"]) == (locked, locked)
    assert sorted(info["versions"]) == sorted(["main", locked])
    two("sync", "--frozen")
    versions = two.json("lock", "show", "default")
    two("lock", "rollback", "default", "1")
    assert "extra" in two("sync", "--name", "default", "--dry-run")
    assert "remove" in two("sync", "--name", "default", "--prune")
    assert [m["model_id"] for m in two.json("list")["data"]] == [MODEL]
    assert len(versions["locked_models"]) == 2


def test_other_bytes_than_the_locked_ones_are_never_published(
    machines: tuple[Service, Service], hub: LocalHub
) -> None:
    first, second = machines
    two = Shell(second)
    (second.home / "modelmora.lock").write_bytes((first.home / "modelmora.lock").read_bytes())
    # the commit is the same, a file of it is not, and the hub vouches for it
    repository = hub._repositories[OTHER]
    with Shell(first).machine.client() as client:
        locked = client.get(OTHER).revision
    assert locked is not None
    good = repository.commits[locked]
    repository.commits[locked] = good | {"config.json": good["config.json"] + b"\n"}
    done = two.json("sync", code=1)
    assert done["status"] == "failed"
    assert "not what was recorded" in done["steps"][0]["error"]
    published = second.model_repository / "org--other"
    assert not published.exists()
    repository.commits[locked] = good
    two("sync")


def test_a_server_that_is_killed_in_a_sync_goes_on_with_the_next(
    machines: tuple[Service, Service], hub: LocalHub
) -> None:
    second = machines[1]
    two = Shell(second)
    two("uninstall", OTHER, "--force")
    shutil.rmtree(second.data_dir / "cache")  # else nothing would have to be downloaded
    hub.stall("org/other/resolve", after=10)
    with program(
        [sys.executable, "-m", "controlplane", "sync", "--url", second.url],
        cwd=second.home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as syncing:
        assert hub.stalled.wait(60)
        second.kill()
        assert syncing.wait(60) != 0
    second.start()
    assert two.json("info", OTHER)["status"] != "failed"  # the server resumes it by itself
    assert two.json("sync")["status"] == "succeeded"
    two("sync", "--frozen")
