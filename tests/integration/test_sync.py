"""A lock and its machine when things go wrong: kills, cancellation, others at work, full disks.

- kill -9 in each phase of a sync, then the next server:
  test_kill_9_in_each_phase_and_the_next_server_goes_on
- the server stops in order: test_a_server_that_stops_in_order_resumes
- two syncs at once, of one lock: test_the_same_sync_twice_is_one; of two:
  test_another_sync_waits_and_plans_anew
- a model is being installed meanwhile: test_an_installation_under_way_is_joined; removed:
  test_a_model_removed_meanwhile_fails_its_step; changed: test_what_others_change_meanwhile_is_told
- cancelled: test_cancelling_stops_what_the_sync_began_and_nothing_else
- damaged files: test_damage_is_repaired_and_told_when_frozen
- full disk: test_a_full_database_loses_no_lock; for the file: test_cli_locks.py
- --frozen at its turn: test_frozen_is_checked_again_at_its_turn; each kind: test_locks_rest.py
- --prune and other active locks (C-46): test_pruning_minds_other_active_locks

Hand-edited, truncated and malicious files: test_lock_file.py. Two servers with real conversions:
tests/e2e/test_locks.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.client import AsyncModelMoraClient
from controlplane.errors import InsufficientDisk, LockDiffers, ModelLocked
from controlplane.events import EventBus
from controlplane.registry.lock_operations import LockOperations
from controlplane.registry.lock_store import LockStore
from controlplane.registry.locking import Locking
from controlplane.registry.model import VersionStatus
from controlplane.registry.operation import Operation, OperationStatus
from controlplane.registry.sync import Machine
from tests.hub import LocalHub
from tests.integration.test_install import (
    FILES,
    HANGS,
    MODEL,
    Registry,
    _others,  # noqa: F401 a fixture for every test
    _step,
    converters,
    until,
)
from tests.integration.test_operations import CONVERTS, killed, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from controlplane.registry.lock import LockDocument, ModelLock

OTHER = "org/other"


class Locked(Registry):
    """A registry with its locks, opened as a server does at its start."""

    locking: Locking
    operations: LockOperations

    def open(
        self,
        switch: Callable[[str, str], Awaitable[None]] | None = None,
        remove: Callable[[str], Awaitable[None]] | None = None,
    ) -> Locked:
        self.start()
        downloads = self.home / "data" / "downloads"
        self.locking = Locking(self.store, LockStore(self.db, EventBus()), downloads.absolute())
        self.operations = LockOperations(
            Machine(
                locking=self.locking,
                store=self.store,
                installer=self.installer,
                downloads=downloads.absolute(),
                repository=(self.home / "repository").absolute(),
                switch=switch or self.switch,
                remove=remove or self.remove,
            )
        )
        return self

    async def switch(self, model_id: str, version: str) -> None:
        self.store.set_current(model_id, version)

    async def remove(self, model_id: str) -> None:
        await self.installer.uninstall(model_id, force=True)

    async def installed(self, model_id: str = MODEL, version: str = "main") -> None:
        if not self.store.list(search_text=model_id).items:
            self.register(model_id, version=version)
        elif version not in [v.version for v in self.store.get(model_id).versions]:
            self.store.add_version(model_id, version)
        self.installer.request(model_id, version)
        await self.installer.wait(model_id)
        status = self.store.version(model_id, version).status
        assert status is VersionStatus.READY

    def lock(self, document: LockDocument | None = None) -> ModelLock:
        if document is None:
            return self.locking.create("default", "production")
        return self.locking.take(document)[0]

    def now(self, operation: Operation) -> Operation:
        return self.installer.operations.get(operation.id)

    async def end(self, operation: Operation) -> Operation:
        await until(lambda: not self.now(operation).active)
        return self.now(operation)

    def digests(self) -> dict[str, str]:
        """Every downloaded file, by `{Triton name}/…`, whatever its Triton number."""
        folder = self.home / "data" / "downloads"
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        local.add(MODEL, FILES)
        yield local


@contextlib.asynccontextmanager
async def opened(home: Path, converter: Any = CONVERTS, **acts: Any) -> AsyncIterator[Locked]:
    machine = Locked(home, converter).open(**acts)
    try:
        yield machine
    finally:
        await machine.operations.close()
        await machine.stop()


@pytest.fixture
async def document(hub: LocalHub, tmp_path: Path) -> LockDocument:
    """What another machine, which has org/tiny, has locked."""
    async with opened(tmp_path / "first") as first:
        await first.installed()
        return first.lock().document


# -- killed and stopped --------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from pathlib import Path
import controlplane.registry.sync as sync
from tests.integration.test_install import HANGS, _step, arriving, until
from tests.integration.test_operations import CONVERTS
from tests.integration.test_sync import Locked

async def there(*_):
    print("there", flush=True)
    await asyncio.sleep(600)

async def main():
    phase = sys.argv[2]
    converter = HANGS if phase in ("conversion", "repair") else CONVERTS
    machine = Locked(Path(sys.argv[1]), converter)
    async def removed(model_id):
        machine.store.delete(model_id, force=True)  # the row is gone, its files are not
        await there()
    machine.open(switch=there if phase == "switch" else None,
                 remove=removed if phase == "removal" else None)
    if phase == "verification":
        def verify(*_, **__):
            print("there", flush=True)
            import time; time.sleep(600)
        sync.verify = verify
    begun = machine.operations.sync(machine.locking.locks.get("default"), prune=True)
    print(begun.id, flush=True)
    if phase == "download":
        await until(lambda: arriving(machine.settings.data_dir, 1000))
        await there()
    if phase in ("conversion", "repair"):
        await until(lambda: _step(machine) == "load")
        await there()
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def prepare(machine: Locked, hub: LocalHub, phase: str) -> None:
    """What makes a sync of the other machine's lock go through that phase."""
    if phase == "download":
        hub.stall("model.safetensors", after=1000)
    if phase in ("download", "conversion"):
        return
    await machine.installed()
    if phase == "switch":
        hub.tag(MODEL, "v2", hub.add(MODEL, FILES | {"README.md": b"2"}))
        await machine.installed(MODEL, "v2")
        machine.store.set_current(MODEL, "v2")
    if phase == "removal":
        hub.add(OTHER, FILES)
        await machine.installed(OTHER)
    if phase == "repair":
        (machine.download / "config.json").chmod(0o600)
        (machine.download / "config.json").write_bytes(b"{ }")


PHASES = ("download", "conversion", "switch", "removal", "verification", "repair")


@pytest.mark.parametrize("phase", PHASES)
async def test_kill_9_in_each_phase_and_the_next_server_goes_on(
    tmp_path: Path, hub: LocalHub, document: LockDocument, phase: str
) -> None:
    home = tmp_path / "second"
    async with opened(home) as machine:
        await prepare(machine, hub, phase)
        machine.lock(document)
    operation_id = await asyncio.to_thread(killed, home, phase, SERVER)
    async with opened(home) as machine:
        ledger = machine.installer.operations
        assert ledger.get(operation_id).active
        machine.installer.resume()
        machine.operations.resume()
        last = await machine.end(ledger.get(operation_id))
        assert (last.status, last.error) == (OperationStatus.SUCCEEDED, None)
        assert last.attempts == 2
        assert machine.locking.plan(document, prune=True) == ()
        assert machine.locking.locks.get("default").document == document
        # nothing of the lock was lost, and once more there is nothing to do
        again = await machine.end(machine.operations.sync(machine.lock(document), frozen=True))
        assert (again.status, again.work and again.work.drift) == (OperationStatus.SUCCEEDED, ())
        assert ledger.page(status="active").total_items == 0
        others = [name for name in machine.digests() if not name.startswith("org--tiny/")]
        assert others == []  # of a removed model the next start takes the files


async def test_a_server_that_stops_in_order_resumes(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    home = tmp_path / "second"
    async with opened(home, HANGS) as machine:
        lock = machine.lock(document)
        operation = machine.operations.sync(lock)
        waits = machine.operations.verify(lock)
        file = machine.operations.verify_file(document)
        await until(lambda: _step(machine) == "load")
        await machine.operations.close()
        await machine.installer.close()
        assert {machine.now(one).status for one in (operation, waits, file)} == {"pending"}
    async with opened(home) as machine:
        machine.installer.resume()
        machine.operations.resume()
        ended = [await machine.end(one) for one in (operation, waits, file)]
        assert [one.status.value for one in ended] == ["succeeded", "succeeded", "failed"]
        assert ended[2].error is not None  # nobody keeps the file: that one cannot be resumed
        assert ended[2].error.code == "INTERRUPTED"


async def test_what_was_about_another_lock_is_not_resumed(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    home = tmp_path / "second"
    async with opened(home, HANGS) as machine:
        operation = machine.operations.sync(machine.lock(document))
        await machine.operations.close()
        machine.locking.locks.delete("default")
        machine.lock(document)  # one of the same name and content, but another
    async with opened(home) as machine:
        machine.operations.resume()
        ended = machine.now(operation)
        assert ended.status is OperationStatus.FAILED
        assert ended.error is not None
        assert ended.error.code == "INTERRUPTED"


# -- several at once -----------------------------------------------------------------------------


async def test_the_same_sync_twice_is_one(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with (
        opened(tmp_path / "second") as machine,
        served(machine, locking=machine.locking, lock_operations=machine.operations) as url,
        AsyncModelMoraClient(url) as client,
        AsyncModelMoraClient(url) as second,
    ):
        machine.lock(document)
        hub.pause("model.safetensors")
        seen: list[Any] = []

        def on_operation(operation: Any) -> None:
            seen.append(operation)
            if any(step.progress and step.progress.bytes_done for step in operation.steps):
                hub.go_on()

        one, other = await asyncio.gather(
            client.sync_lock("default", on_operation=on_operation), second.sync_lock("default")
        )
        assert one.id == other.id
        assert (one.status, one.lock, one.drift) == ("succeeded", "default", [])
        assert [(step.action, step.state) for step in one.steps] == [("install", "done")]
        assert {"installing", "verifying"} <= {operation.phase for operation in seen}
        progress = [step.progress for o in seen for step in o.steps if step.progress]
        assert {"downloading", "exporting"} <= {found.phase for found in progress}
        assert one.bytes_done == one.bytes_total
        (install,) = (await client.list_operations(model_id=MODEL)).data
        assert install.id == one.steps[0].operation_id
        verified = await client.verify_lock("default")
        assert (verified.kind, verified.status) == ("verify", "succeeded")


async def test_another_sync_waits_and_plans_anew(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with opened(tmp_path / "second") as machine:
        await machine.installed()
        hub.tag(MODEL, "v2", hub.add(MODEL, FILES | {"README.md": b"2"}))
        await machine.installed(MODEL, "v2")
        first = machine.lock(document)
        second = machine.locking.create("second", "production")
        machine.store.set_current(MODEL, "v2")
        second = machine.locking.change("second", refresh=True)
        # seen from here the second has nothing to do; the first will have changed that
        operations = [machine.operations.sync(first), machine.operations.sync(second)]
        ended = [await machine.end(one) for one in operations]
        assert [one.status.value for one in ended] == ["succeeded", "succeeded"]
        assert machine.store.get(MODEL).current_version == "v2"
        assert ended[1].work is not None
        assert [step.action.kind for step in ended[1].work.steps] == ["switch"]


async def test_an_installation_under_way_is_joined(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with opened(tmp_path / "second", HANGS) as machine:
        machine.register()
        install = machine.installer.install(MODEL)
        await until(lambda: _step(machine) == "load")
        sync = machine.operations.sync(machine.lock(document))
        await until(lambda: (w := machine.now(sync).work) and w.steps[0].operation_id)
        work = machine.now(sync).work
        assert work is not None
        assert work.steps[0].operation_id == install.id
        stopped = await machine.installer.operations.cancel(sync.id)
        assert (stopped.status, stopped.work and stopped.work.steps[0].state) == (
            OperationStatus.CANCELLED,
            "left",
        )
        assert machine.now(install).active  # somebody else had asked for it


async def test_cancelling_stops_what_the_sync_began_and_nothing_else(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with opened(tmp_path / "second", HANGS) as machine:
        lock = machine.lock(document)
        sync, waits = machine.operations.sync(lock), machine.operations.verify(lock)
        await until(lambda: _step(machine) == "load")
        stopped = await machine.installer.operations.cancel(waits.id)
        assert stopped.status is OperationStatus.CANCELLED  # while it waited for its turn
        await machine.installer.operations.cancel(sync.id)
        assert converters() == []
        (install,) = machine.installer.operations.page(kind="install").items
        assert install.status is OperationStatus.CANCELLED
        assert machine.store.version(MODEL).status is VersionStatus.FAILED
        machine.installer._shop.converter = CONVERTS
        again = await machine.end(machine.operations.sync(lock))
        assert again.status is OperationStatus.SUCCEEDED


async def test_a_model_removed_meanwhile_fails_its_step(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with opened(tmp_path / "second", HANGS) as machine:
        sync = machine.operations.sync(machine.lock(document))
        await until(lambda: _step(machine) == "load")
        await machine.installer.uninstall(MODEL, force=True)
        ended = await machine.end(sync)
        assert ended.error is not None
        assert ended.error.code == "SYNC_FAILED"
        assert ended.work is not None
        assert ended.work.steps[0].error == "The model was uninstalled."


async def test_what_others_change_meanwhile_is_told(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async def switch(model_id: str, version: str) -> None:
        machine.store.set_current(model_id, version)
        machine.store.set_current(model_id, "v2")  # somebody switches back at once

    async with opened(tmp_path / "second", switch=switch) as machine:
        await machine.installed()
        hub.tag(MODEL, "v2", hub.add(MODEL, FILES | {"README.md": b"2"}))
        await machine.installed(MODEL, "v2")
        machine.store.set_current(MODEL, "v2")
        ended = await machine.end(machine.operations.sync(machine.lock(document)))
        assert ended.error is not None
        assert ended.error.code == "SYNC_FAILED"
        assert "Changed meanwhile: switch org/tiny@main" in ended.error.message


# -- what must not be done -----------------------------------------------------------------------


async def test_frozen_is_checked_again_at_its_turn(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with opened(tmp_path / "second") as machine:
        lock = machine.lock(document)
        with pytest.raises(LockDiffers, match="is not installed"):
            machine.operations.sync(lock, frozen=True)
        await machine.installed()
        frozen = machine.operations.sync(lock, frozen=True)
        machine.register(OTHER)  # before its first step
        ended = await machine.end(frozen)
        assert ended.error is not None
        assert ended.error.code == "LOCK_DIFFERS"
        assert "extra org/other" in ended.error.message


async def test_damage_is_repaired_and_told_when_frozen(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    async with opened(tmp_path / "second") as machine:
        await machine.installed()
        lock, path = machine.lock(document), machine.download / "config.json"
        path.chmod(0o600)
        path.write_bytes(b"{ }")
        (machine.artefact / "model.onnx").unlink()
        frozen = await machine.end(machine.operations.sync(lock, frozen=True))
        assert frozen.error is not None
        assert frozen.work is not None
        assert frozen.error.code == "LOCK_DRIFT"
        found = {(one.part, one.problem) for one in frozen.work.drift}
        assert found == {("source", "changed"), ("artefact", "missing")}
        assert path.read_bytes() == b"{ }"
        repaired = await machine.end(machine.operations.sync(lock))
        assert repaired.status is OperationStatus.SUCCEEDED
        assert repaired.work is not None
        assert [(s.action.kind, s.state) for s in repaired.work.steps] == [("repair", "done")]
        assert path.read_bytes() == FILES["config.json"]


async def test_pruning_minds_other_active_locks(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    hub.add(OTHER, FILES)
    async with opened(tmp_path / "second") as machine:
        await machine.installed()
        await machine.installed(OTHER)
        machine.locking.create("keeps", "production", models=[OTHER])
        lock = machine.lock(document)
        ended = await machine.end(machine.operations.sync(lock, prune=True))
        assert ended.work is not None
        assert (ended.status, ended.work.steps[0].state) == (OperationStatus.FAILED, "failed")
        assert "is locked by keeps" in (ended.work.steps[0].error or "")
        with pytest.raises(ModelLocked):
            machine.store.check_unlocked(OTHER)
        machine.locking.change("keeps", active=False)
        ended = await machine.end(machine.operations.sync(lock, prune=True))
        assert ended.status is OperationStatus.SUCCEEDED
        assert [model.model_id for model in machine.store.list().items] == [MODEL]


async def test_a_full_database_loses_no_lock(
    tmp_path: Path, hub: LocalHub, document: LockDocument
) -> None:
    import msgspec

    many = tuple(
        msgspec.structs.replace(document.locked_models[0], model_id=f"org/m{n}") for n in range(300)
    )
    large = msgspec.structs.replace(document, locked_models=many)
    async with opened(tmp_path / "second") as machine:
        lock = machine.lock(document)
        pages = machine.db.execute("PRAGMA page_count").fetchone()[0]
        machine.db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(InsufficientDisk):
            machine.locking.take(large)
        machine.db.execute("PRAGMA max_page_count = 1000000")
        assert machine.locking.locks.get("default") == lock
        assert machine.locking.take(large)[0].version == lock.version + 1
