"""The REST routes of locks: bodies, statuses, the file as YAML, activities to be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from controlplane.db import open_db
from controlplane.events import EventBus
from controlplane.gateway.rest import create_app
from controlplane.gateway.services import Services
from controlplane.registry import lock_file
from controlplane.registry.operation import Operation, OperationStatus
from controlplane.registry.operation_store import OperationStore
from controlplane.registry.operations import Operations
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from tests.locks import add_ready, document, entry, lock_services, source
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from controlplane.registry.lock import LockDocument

LOCKS = "/api/v1/locks"


@dataclass
class QuickInstaller:
    """Every installation succeeds at once, but for those that are to fail."""

    store: ModelStore
    failing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.operations = Operations(OperationStore(self.store.db))

    def install(self, model_id: str, version: str) -> Operation:
        operation = self.operations.begin(self.store.version(model_id, version))
        self.store.set_status(model_id, version, "downloading")
        if model_id in self.failing:
            self.store.set_status(model_id, version, "failed", "the hub is away")
            self.operations.finish(operation.id, OperationStatus.FAILED)
            return self.operations.get(operation.id)
        self.store.set_status(model_id, version, "exporting")
        manifest = {"backend": "text_embedding", "engine": "onnxruntime", "files": []}
        self.store.mark_ready(
            model_id,
            version,
            manifest=manifest,
            artefact_bytes=1,
            artefact_checksum="sha256:" + "9" * 64,
        )
        self.operations.finish(operation.id, OperationStatus.SUCCEEDED)
        return self.operations.get(operation.id)

    def progress(self, model_id: str, version: str | None = None) -> None:
        return None


@dataclass
class Server:
    http: httpx.AsyncClient
    store: ModelStore
    installer: QuickInstaller
    folder: Path

    async def ask(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self.http.request(method, path, **body)
        assert answer.status_code == status, answer.text
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.json() if is_json else answer.text

    async def end_of(self, operation: dict[str, Any]) -> Any:
        """The operation when it has ended."""

        async def ended() -> Any:
            found = await self.ask("GET", operation["links"]["self"])
            return found if found["status"] not in ("pending", "running") else None

        return await eventually(ended)

    def put_files(self, model_id: str = "org--name") -> None:
        """Downloads and artefacts as the test's entries have them."""
        (self.folder / "repository" / model_id / "1").mkdir(parents=True)
        (self.folder / "downloads" / model_id / "1").mkdir(parents=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    bus, db = EventBus(), open_db(":memory:")
    store = ModelStore(db, bus)
    installer = QuickInstaller(store)
    more = lock_services(store, db, bus, installer, tmp_path)
    unused: Any = None
    services = Services(
        settings=Settings(),
        store=store,
        installer=installer,  # type: ignore[arg-type]
        scheduler=unused,
        inference=unused,
        server=unused,
        client=unused,
        bus=bus,
        render_metrics=unused,
        started_at=0.0,
        version="0",
        **more,
    )
    app = create_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Server(client, store, installer, tmp_path)
    await more["lock_operations"].close()
    await app.close()
    db.close()


async def test_a_lock_lives_and_dies(server: Server) -> None:
    add_ready(server.store)
    made = await server.ask("POST", LOCKS, 201, json={"name": "prod", "environment": "production"})
    assert made["locked_models"][0]["files"][0] == {
        "path": "config.json",
        "size": 3,
        "sha256": "a" * 64,
    }
    assert "description" not in made
    assert (await server.ask("GET", f"{LOCKS}/prod")) == made
    listed = await server.ask("GET", LOCKS, params={"environment": "production"})
    assert [lock["models"] for lock in listed["data"]] == [1]
    assert (await server.ask("GET", LOCKS, params={"environment": "x"}))["data"] == []
    body = {"description": "why", "active": False, "version_number": 1}
    changed = await server.ask("PUT", f"{LOCKS}/prod", json=body)
    assert (changed["version_number"], changed["active"]) == (2, False)
    refused = await server.ask("PUT", f"{LOCKS}/prod", 409, json=body | {"description": "no"})
    assert refused["error"]["code"] == "CONCURRENT_MODIFICATION"
    again = await server.ask("POST", LOCKS, 409, json={"name": "prod"})
    assert again["error"]["code"] == "LOCK_ALREADY_EXISTS"
    await server.ask("DELETE", f"{LOCKS}/prod", 204)
    gone = await server.ask("GET", f"{LOCKS}/prod", 404)
    assert gone["error"]["code"] == "LOCK_NOT_FOUND"


async def test_a_file_goes_in_and_comes_out_unchanged(server: Server) -> None:
    text = lock_file.dump(document(entry(), name="prod"))
    await server.ask("POST", f"{LOCKS}/import", 201, content=text)
    await server.ask("POST", f"{LOCKS}/import", 200, content=text)
    answer = await server.http.get(f"{LOCKS}/prod/export")
    assert answer.headers["content-type"].startswith("application/yaml")
    assert answer.text == text
    await server.ask(
        "POST",
        f"{LOCKS}/import",
        content=lock_file.dump(document(entry(version="v2"), name="prod")),
    )
    assert (await server.ask("GET", f"{LOCKS}/prod/export?version=1")) == text
    revisions = await server.ask("GET", f"{LOCKS}/prod/revisions")
    assert [revision["version"] for revision in revisions["data"]] == [1, 2]
    back = await server.ask("POST", f"{LOCKS}/prod/rollback", json={"version": 1})
    assert back["locked_models"][0]["version"] == "main"


async def test_a_damaged_file_changes_nothing(server: Server) -> None:
    text = lock_file.dump(document(entry())).replace("config.json", "confog.json")
    for path in ("import", "compare", "verify"):
        refused = await server.ask("POST", f"{LOCKS}/{path}", 400, content=text)
        assert refused["error"]["code"] == "INVALID_LOCK"
        assert "line 11" in refused["error"]["message"]
        assert list(refused["error"]["details"]["fields"]) == ["locked_models[0].checksum"]
    assert (await server.ask("GET", LOCKS))["data"] == []


async def test_comparing_tells_both_ways_round(server: Server) -> None:
    add_ready(server.store, "org/extra")
    text = lock_file.dump(document(entry()))
    found = await server.ask("POST", f"{LOCKS}/compare", content=text)
    assert [d["message"] for d in found["differences"]] == [
        "org/extra is not in the lock",
        "org/name is locked but not installed",
    ]
    assert [a["kind"] for a in found["actions"]] == ["install", "extra"]
    chosen = await server.ask("POST", f"{LOCKS}/compare?prune=true", content=text)
    assert [a["kind"] for a in chosen["actions"]] == ["install", "remove"]
    params = {"model": ["org/extra"]}
    found = await server.ask("POST", f"{LOCKS}/compare", content=text, params=params)
    assert len(found["differences"]) == 2


async def test_a_sync_installs_switches_and_removes(server: Server) -> None:
    add_ready(server.store, "org/extra")
    add_ready(server.store, "org/both")
    add_ready(server.store, "org/both", "v2", files=source("2"))
    text = lock_file.dump(document(entry(), entry("org/both", "v2", files=source("2"))))
    await server.ask("POST", f"{LOCKS}/import", 201, content=text)
    dry = await server.ask("POST", f"{LOCKS}/default/sync", json={"dry_run": True})
    assert [a["kind"] for a in dry["actions"]] == ["switch", "install", "extra"]
    frozen = await server.ask("POST", f"{LOCKS}/default/sync", 409, json={"frozen": True})
    assert frozen["error"]["code"] == "LOCK_DIFFERS"
    assert server.store.list().total_items == 2
    begun = await server.ask("POST", f"{LOCKS}/default/sync", 202, json={"prune": True})
    done = await server.end_of(begun)
    steps = [(s["action"], s["model_id"], s["version"], s["state"]) for s in done["steps"]]
    assert steps[:3] == [
        ("switch", "org/both", "v2", "done"),
        ("install", "org/name", "main", "done"),
        ("remove", "org/extra", "main", "done"),
    ]
    assert server.store.get("org/both").current_version == "v2"
    # the files that the real installer would have brought are not there, nor can be repaired
    assert [step[0] for step in steps[3:]] == ["repair", "repair"]
    assert {(d["part"], d["problem"]) for d in done["drift"]} >= {("source", "missing")}
    assert (done["status"], done["error"]["code"]) == ("failed", "LOCK_DRIFT")


async def test_a_sync_tells_what_failed_and_prunes_nothing(server: Server) -> None:
    add_ready(server.store, "org/extra")
    server.installer.failing.add("org/name")
    await server.ask("POST", f"{LOCKS}/import", 201, content=lock_file.dump(document(entry())))
    begun = await server.ask("POST", f"{LOCKS}/default/sync", 202, json={"prune": True})
    done = await server.end_of(begun)
    assert (done["status"], done["error"]["code"]) == ("failed", "SYNC_FAILED")
    assert [s["state"] for s in done["steps"]] == ["failed", "left"]
    assert done["steps"][0]["error"] == "the hub is away"
    assert server.store.get("org/extra")


async def test_a_conflict_is_refused_before_anything_is_done(server: Server) -> None:
    add_ready(server.store, files=source("e"))
    lock = document(entry(revision=None), entry("org/second"))
    await server.ask("POST", f"{LOCKS}/import", 201, content=lock_file.dump(lock))
    refused = await server.ask("POST", f"{LOCKS}/default/sync", 409)
    assert "stands for other files here" in refused["error"]["message"]
    assert server.store.list().total_items == 1


def prepare(server: Server, kind: str) -> LockDocument:
    """A lock, and a catalog that differs from it in one way."""
    if kind == "extra":
        add_ready(server.store, "org/extra")
    if kind == "install":
        return document(entry(), entry("org/missing"))
    add_ready(server.store)
    if kind == "switch":
        add_ready(server.store, version="v2", files=source("2"))
        server.store.set_current("org/name", "v2")
    if kind == "damaged":
        server.store.set_status("org/name", "main", "failed", "its artefact is gone")
    if kind == "conflict":
        return document(entry(revision=None, files=source("e")))
    return document(entry())


KINDS = {
    "install": "install org/name@main: is not installed",
    "switch": "switch org/name@main: v2 is current",
    "damaged": "install org/name@main: is failed, not ready",
    "extra": "extra org/extra@main: is not in the lock",
    "conflict": "conflict org/name@main: 'main' stands for other files here",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_neither_frozen_nor_a_dry_run_changes_anything(server: Server, kind: str) -> None:
    lock = prepare(server, kind)
    await server.ask("POST", f"{LOCKS}/import", 201, content=lock_file.dump(lock))
    before = list(server.store.db.conn.iterdump())
    refused = await server.ask("POST", f"{LOCKS}/default/sync", 409, json={"frozen": True})
    assert KINDS[kind] in refused["error"]["message"]
    for prune in (False, True):
        body = {"dry_run": True, "prune": prune}
        found = await server.ask("POST", f"{LOCKS}/default/sync", json=body)
        assert found["actions"]
        content = lock_file.dump(lock)
        await server.ask("POST", f"{LOCKS}/compare?prune={str(prune).lower()}", content=content)
    assert list(server.store.db.conn.iterdump()) == before


async def test_operations_on_locks_are_listed_and_followed_as_all_others(server: Server) -> None:
    await server.ask("POST", f"{LOCKS}/import", 201, content=lock_file.dump(document(entry())))
    answer = await server.http.post(f"{LOCKS}/default/verify")
    begun = answer.json()
    assert answer.headers["location"] == begun["links"]["self"]
    assert begun["links"]["lock"] == f"{LOCKS}/default"
    assert "model_id" not in begun
    events = (await server.http.get(begun["links"]["events"])).text
    assert "event: end" in events
    done = await server.end_of(begun)
    assert (await server.ask("GET", f"{LOCKS}/activities/{begun['id']}")) == done
    listed = await server.ask("GET", "/api/v1/operations", params={"kind": "verify"})
    assert listed["data"] == [done]
    late = await server.ask("DELETE", begun["links"]["self"], 409)
    assert late["error"]["code"] == "OPERATION_FINISHED"


async def test_verifying_a_lock_of_nothing_installed(server: Server) -> None:
    text = lock_file.dump(document(entry()))
    begun = await server.ask("POST", f"{LOCKS}/verify", 202, content=text)
    done = await server.end_of(begun)
    assert [d["problem"] for d in done["drift"]] == ["not installed"]
    assert done["error"]["message"] == "1 thing is not as locked in 'default'."
    assert (await server.ask("GET", LOCKS))["data"] == []


async def test_the_short_lock_of_the_api(server: Server) -> None:
    add_ready(server.store)
    found = await server.ask("POST", "/api/v1/models/lock")
    assert found["version"] == "1.0"
    assert found["models"] == [
        {
            "model_id": "org/name",
            "version": "main",
            "source_url": entry().artifact_uri,
            "checksum": entry().checksum,
            "task_type": "txt2embed",
        }
    ]


async def test_a_locked_model_is_refused_before_its_removal(server: Server) -> None:
    add_ready(server.store)
    await server.ask("POST", LOCKS, 201, json={"name": "prod"})
    refused = await server.ask("DELETE", "/api/v1/models/org/name", 409)
    assert refused["error"]["code"] == "MODEL_LOCKED"
    assert refused["error"]["details"]["locks"] == ["prod"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", LOCKS, {"name": "a b"}, 400),
        ("POST", LOCKS, {"name": "prod"}, 400),  # nothing to lock
        ("POST", LOCKS, {"name": "prod", "models": ["org/no"]}, 404),
        ("POST", LOCKS, {"nome": "prod"}, 400),
        ("PUT", f"{LOCKS}/no", {"refresh": True}, 404),
        ("POST", f"{LOCKS}/no/sync", {}, 404),
        ("POST", f"{LOCKS}/no/verify", None, 404),
        ("POST", f"{LOCKS}/no/rollback", {"version": 1}, 404),
        ("GET", f"{LOCKS}/no/export", None, 404),
        ("GET", f"{LOCKS}/activities/no", None, 404),
    ],
)
async def test_refusals(server: Server, method: str, path: str, body: Any, status: int) -> None:
    refused = await server.ask(method, path, status, json=body)
    assert set(refused) == {"error"}
