"""lock, sync and verify against recorded answers: what they send, print, write and exit with."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.cli import exits
from controlplane.cli.main import run
from controlplane.registry import lock_file
from tests import rest_server as rest
from tests.locks import document, entry
from tests.rest_server import RestServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCKS = "/api/v1/locks"
TEXT = lock_file.dump(document(entry()))
LOCK = {
    "name": "default",
    "environment": "production",
    "active": True,
    "version_number": 2,
    "locked_models": [
        {
            "model_id": "org/name",
            "version": "main",
            "checksum": entry().checksum,
            "artifact_uri": entry().artifact_uri,
            "task_type": "txt2embed",
            "resource_requirements": {"memory_mb": 100},
        }
    ],
}
SAME: dict[str, Any] = {"name": "default", "differences": [], "actions": [], "warnings": []}
INSTALL = {"kind": "install", "model_id": "org/name", "version": "main", "reason": "is missing"}
CONFLICT = INSTALL | {"kind": "conflict"}
OPERATION = f"/api/v1/operations/{rest.OPERATION_ID}"
RUNNING: dict[str, Any] = {
    "id": rest.OPERATION_ID,
    "kind": "sync",
    "lock": "default",
    "status": "running",
    "message": "0 of 1 steps",
    "phase": "installing",
    "steps": [
        {
            "action": "install",
            "model_id": "org/name",
            "version": "main",
            "reason": "is missing",
            "state": "running",
            "progress": rest.progress("downloading", 0.5),
        }
    ],
    "drift": [],
    "bytes_done": 512 * 1024,
    "bytes_total": 1024 * 1024,
}
VERIFYING = RUNNING | {"phase": "verifying", "fraction": 0.5, "message": "", "steps": []}
DONE = VERIFYING | {"status": "succeeded"}
DRIFT = {
    "model_id": "org/name",
    "version": "main",
    "part": "source",
    "problem": "changed",
    "path": "config.json",
    "expected": "sha256:1",
    "found": "sha256:2",
}
NOT_AS_LOCKED = {"code": "LOCK_DRIFT", "message": "1 thing is not as locked."}
FAILED = DONE | {"status": "failed", "drift": [DRIFT], "error": NOT_AS_LOCKED}
NO_LOCK = rest.error("LOCK_NOT_FOUND", "There is no lock 'default'.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RestServer]:
    running = RestServer()
    monkeypatch.setenv("MODELMORA_URL", running.url)
    monkeypatch.chdir(tmp_path)
    running.set("POST", f"{LOCKS}/import", (200, LOCK))
    running.set("PUT", f"{LOCKS}/default", (200, LOCK))
    running.set("POST", LOCKS, (201, LOCK))
    running.set("GET", LOCKS, (200, {"data": [{**LOCK, "models": 1}]}))
    running.set("GET", f"{LOCKS}/default", (200, LOCK))
    running.set("GET", f"{LOCKS}/default/revisions", (200, {"name": "default", "data": []}))
    running.set("GET", f"{LOCKS}/default/export", (200, TEXT.encode()))
    running.set("POST", f"{LOCKS}/default/rollback", (200, LOCK))
    running.set("DELETE", f"{LOCKS}/default", (204, None))
    running.set("POST", f"{LOCKS}/compare", (200, SAME))
    running.set("POST", f"{LOCKS}/default/sync", (202, RUNNING))
    running.set("POST", f"{LOCKS}/default/verify", (202, RUNNING))
    running.set("POST", f"{LOCKS}/verify", (202, RUNNING))
    events = rest.events(RUNNING, VERIFYING, DONE)
    running.set("GET", f"{OPERATION}/events", (200, events))
    yield running
    running.close()


@pytest.fixture
def modelmora(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def asked(server: RestServer) -> list[tuple[str, str]]:
    return [(r.method, r.path.removeprefix(LOCKS)) for r in server.requests]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lock", "list"], "default"),
        (["lock", "show", "default"], "org/name"),
        (["lock", "export", "default"], "lock_version"),
        (["lock", "export", "default", "--version", "1", "--output", "x"], "x is written"),
        (["lock", "rollback", "default", "1"], "is at version 2: 1 models."),
        (["lock", "activate", "default"], "is at version 2"),
        (["lock", "deactivate", "default"], "is at version 2"),
        (["lock", "delete", "default"], "is deleted"),
        (["lock"], "modelmora.lock is written: 1 model."),
        (["sync", "--name", "default"], "as locked in default (1.0 MB verified)"),
        (["verify", "--name", "default"], "as locked in default (1.0 MB verified)"),
    ],
)
def test_commands_print_for_people_and_for_machines(
    server: RestServer, modelmora: Any, arguments: list[str], words: str
) -> None:
    code, out, _ = modelmora(*arguments)
    assert (code, words in out) == (0, True), out
    code, out, err = modelmora(*arguments, "--json")
    assert (code, err, type(json.loads(out))) == (0, "", dict)


# -- lock --------------------------------------------------------------------------------------


def test_the_first_lock_is_created_and_written(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    server.set("PUT", f"{LOCKS}/default", (404, NO_LOCK))
    assert modelmora("lock", "--env", "staging", "--upgrade", "a/b", "--model", "a/c")[0] == 0
    assert (tmp_path / "modelmora.lock").read_text() == TEXT
    assert asked(server) == [("PUT", "/default"), ("POST", ""), ("GET", "/default/export")]
    assert server.requests[1].body == {
        "name": "default",
        "environment": "staging",
        "models": ["a/c"],
        "upgrade": ["a/b"],
    }


def test_a_lock_that_is_the_same_is_not_written_again(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    path = tmp_path / "modelmora.lock"
    path.write_text(TEXT)
    path.chmod(0o400)
    before = path.stat()
    assert "is up to date" in modelmora("lock")[1]
    assert asked(server)[0] == ("POST", "/import")
    assert server.requests[0].body == TEXT
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_name_does_not_import_the_file(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    (tmp_path / "modelmora.lock").write_text(lock_file.dump(document(entry(), name="other")))
    modelmora("lock", "--name", "default")
    assert asked(server) == [("PUT", "/default"), ("GET", "/default/export")]


@pytest.mark.parametrize("arguments", [["lock"], ["lock", "--check"], ["sync"], ["verify"]])
def test_a_damaged_file_is_named_and_nothing_is_asked_or_written(
    server: RestServer, modelmora: Any, tmp_path: Path, arguments: list[str]
) -> None:
    broken = TEXT.replace("config.json", "confog.json")
    (tmp_path / "modelmora.lock").write_text(broken)
    code, _, err = modelmora(*arguments)
    assert code == exits.USAGE
    assert "modelmora.lock: line 11: locked_models[0].checksum" in err
    assert (server.requests, (tmp_path / "modelmora.lock").read_text()) == ([], broken)


def test_check_tells_the_differences_and_writes_nothing(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    assert modelmora("lock", "--check")[0] == exits.FAILED  # no file
    (tmp_path / "modelmora.lock").write_text(TEXT)
    assert modelmora("lock", "--check")[0] == exits.OK
    difference = {"model_id": "a/b", "field": "version", "message": "a/b: version is 2"}
    server.set("POST", f"{LOCKS}/compare", (200, SAME | {"differences": [difference]}))
    code, out, _ = modelmora("lock", "--check")
    assert (code, out) == (exits.FAILED, "a/b: version is 2\n")
    assert {path for _, path in asked(server)} == {"/compare"}


def test_a_file_that_cannot_be_written_is_named(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    code, _, err = modelmora("lock", "--output", str(tmp_path / "no" / "x.lock"))
    assert (code, "cannot be written" in err) == (exits.FAILED, True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB with a lock on it, and no room for another."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    (place / "modelmora.lock").write_text(TEXT)
    with contextlib.suppress(OSError), (place / "rest").open("wb", buffering=0) as rest_of_it:
        while True:
            rest_of_it.write(b"x" * 4096)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_the_old_file_whole(
    server: RestServer, modelmora: Any, full_disk: Path
) -> None:
    newer = lock_file.dump(document(*(entry(f"org/m{n}") for n in range(20))))
    server.set("GET", f"{LOCKS}/default/export", (200, newer.encode()))
    path = full_disk / "modelmora.lock"
    code, _, err = modelmora("lock", "--output", str(path))
    assert (code, "cannot be written: No space left" in err) == (exits.FAILED, True)
    assert path.read_text() == TEXT
    assert sorted(p.name for p in full_disk.iterdir()) == ["modelmora.lock", "rest"]


# -- sync and verify ---------------------------------------------------------------------------


def test_sync_imports_the_file_and_waits_for_the_end(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    (tmp_path / "modelmora.lock").write_text(TEXT)
    code, _, err = modelmora("sync", "--prune")
    assert code == 0
    assert [path for _, path in asked(server)] == [
        "/compare",
        "/import",
        "/default/sync",
        f"{OPERATION}/events",
    ]
    assert server.requests[0].query["prune"] == "true"
    assert server.requests[2].body == {"frozen": False, "prune": True}
    assert err.splitlines() == [
        "org/name Downloading: 50%",
        "Installing: 0 of 1 steps",
        "Verifying: 50% 0.5 of 1.0 MB",
    ]


@pytest.mark.parametrize(
    ("options", "action", "code"),
    [
        (["--dry-run"], INSTALL, 0),
        (["--dry-run"], CONFLICT, 1),
        (["--frozen"], INSTALL, 1),
        ([], CONFLICT, 1),
    ],
)
def test_sync_changes_nothing_when_it_must_not_or_cannot(
    server: RestServer, modelmora: Any, tmp_path: Path, options: list[str], action: Any, code: int
) -> None:
    (tmp_path / "modelmora.lock").write_text(TEXT)
    server.set("POST", f"{LOCKS}/compare", (200, SAME | {"actions": [action]}))
    found, out, _ = modelmora("sync", *options)
    assert (found, action["kind"] in out) == (code, True)
    assert asked(server) == [("POST", "/compare")]


def test_drift_is_listed_and_is_a_failure(
    server: RestServer, modelmora: Any, tmp_path: Path
) -> None:
    (tmp_path / "modelmora.lock").write_text(TEXT)
    server.set("GET", f"{OPERATION}/events", (200, rest.events(FAILED)))
    for command in ("sync", "verify"):
        code, out, _ = modelmora(command)
        assert code == exits.FAILED
        assert "source config.json is changed: expected sha256:1, found sha256:2" in out


def test_no_file_says_what_to_do(server: RestServer, modelmora: Any) -> None:
    for command in ("sync", "verify"):
        code, _, err = modelmora(command)
        assert (code, "modelmora lock" in err) == (exits.FAILED, True)


def test_a_locked_model_says_how_to_uninstall_it(server: RestServer, modelmora: Any) -> None:
    refused = rest.error("MODEL_LOCKED", "Model 'a/b' is locked by x. Delete it, or use force.")
    server.set("DELETE", "/api/v1/models/a/b", (409, refused))
    code, _, err = modelmora("uninstall", "a/b")
    assert (code, "or add --force" in err) == (exits.CONFLICT, True)
