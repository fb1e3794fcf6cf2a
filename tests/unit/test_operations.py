"""The ledger of operations: moves, what is written when, watchers, filters, restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.db import migrate_down, migrate_up, open_db
from controlplane.errors import OperationNotFound, ValidationFailed
from controlplane.events import EventBus, utc_now
from controlplane.registry.files import Progress
from controlplane.registry.lock_plan import Action
from controlplane.registry.lock_work import Drift, LockWork
from controlplane.registry.model import NewModel
from controlplane.registry.operation import (
    INSTALL,
    SYNC,
    Operation,
    OperationError,
    OperationStatus,
    advanced,
    ended,
    interrupted,
)
from controlplane.registry.operation_store import OperationStore
from controlplane.registry.operations import SAVE_SECONDS, Operations
from controlplane.registry.rate import Rate
from controlplane.registry.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlite_utils import Database

    from controlplane.registry.model import ModelVersion


class Clock:
    """Monotonic seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def db() -> Iterator[Database]:
    database = open_db(":memory:")
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(db: Database, clock: Clock) -> Operations:
    return Operations(OperationStore(db), clock=clock)


def version(db: Database, model_id: str = "org/tiny") -> ModelVersion:
    store = ModelStore(db, EventBus())
    return store.register(NewModel(model_id=model_id, task_type="txt2embed")).current


def downloaded(done: int, step: str = "w", rate: float | None = None) -> Progress:
    return Progress(
        rate=rate,
        phase="downloading",
        step=step,
        message="m",
        fraction=done / 1000,
        bytes_done=done,
        bytes_total=1000,
    )


EXPORTING = Progress(phase="exporting", step="load", message="loading")
FAILURE = OperationError("EXPORT_FAILED", "Too odd.")


# -- rules ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.2, 3), min_size=3, max_size=40),
    st.integers(1000, 10**9),
)
def test_a_steady_transfer_has_its_rate(pauses: list[float], per_second: int) -> None:
    clock = Clock()
    rate, found = Rate(clock), None
    rate.add(0)
    for pause in pauses:
        clock.now += pause
        found = rate.add(int(pause * per_second))
    # of the bytes in the window, the first came before it
    assert found is None or per_second * 0.9 <= found <= per_second * 4


def test_a_rate_is_of_the_last_seconds() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert rate.add(0) is None
    clock.now += 1
    assert rate.add(500) == 500
    clock.now += 100
    assert rate.add(100) is None  # what was long ago does not count
    clock.now += 2
    assert rate.add(100) == 100


def test_an_operation_keeps_what_it_was_begun_with(db: Database, ledger: Operations) -> None:
    begun = ledger.begin(version(db))
    now = utc_now()
    running = advanced(begun, downloaded(10, rate=5.0), now)
    assert (running.status, running.started_at, running.rate) == ("running", now, 5.0)
    failed = ended(running, OperationStatus.FAILED, FAILURE, now)
    assert (failed.phase, failed.fraction, failed.rate) == ("downloading", 0.01, None)
    assert not failed.active
    assert ended(running, OperationStatus.SUCCEEDED, None, now).fraction == 1.0
    again = interrupted(running, "again", now)
    assert (again.status, again.started_at) == ("pending", now)


# -- the ledger ----------------------------------------------------------------------------------


def test_the_newest_state_is_told_and_the_end_recorded(
    db: Database, ledger: Operations, clock: Clock
) -> None:
    begun = ledger.begin(version(db))
    assert begun.status is OperationStatus.PENDING
    ledger.report(begun.id, downloaded(100))
    clock.now += 1
    ledger.report(begun.id, downloaded(300, rate=200.0))
    now = ledger.get(begun.id)
    assert (now.status, now.bytes_done, now.rate) == ("running", 300, 200.0)
    assert ledger.page().items == (now,)
    ledger.finish(begun.id, OperationStatus.FAILED, FAILURE)
    last = ledger.get(begun.id)
    assert (last.status, last.error, last.bytes_done) == ("failed", FAILURE, 300)
    assert OperationStore(db).get(begun.id) == last
    ledger.report(begun.id, downloaded(400))  # from a thread that was late
    ledger.finish(begun.id, OperationStatus.SUCCEEDED)
    assert ledger.get(begun.id) == last


def test_progress_is_written_seldom(db: Database, ledger: Operations, clock: Clock) -> None:
    begun = ledger.begin(version(db))
    before = db.conn.total_changes
    for done in range(1000):  # ten seconds
        ledger.report(begun.id, downloaded(done))
        clock.now += 0.01
    assert db.conn.total_changes - before == 10 // SAVE_SECONDS
    ledger.report(begun.id, EXPORTING)  # a new phase, at once
    assert OperationStore(db).get(begun.id).phase == "exporting"


async def test_a_flood_of_progress_reaches_the_loop_as_a_trickle(
    db: Database, ledger: Operations, clock: Clock
) -> None:
    begun = ledger.begin(version(db))
    report, heard = ledger.reporter(begun.id), []
    ledger.report = lambda _, progress: heard.append(progress.bytes_done)  # type: ignore[method-assign]

    def download() -> None:
        for done in range(1001):  # one second
            report(downloaded(done))
            clock.now += 0.001

    await asyncio.to_thread(download)
    await asyncio.sleep(0)
    assert 9 <= len(heard) <= 12
    assert (heard[0], heard[-1]) == (0, 1000)  # the first and the whole always


def test_a_version_has_one_operation_at_a_time(db: Database, ledger: Operations) -> None:
    tiny = version(db)
    begun = ledger.begin(tiny)
    ledger.report(begun.id, EXPORTING)
    later = Operations(OperationStore(db))  # the next server
    assert [one.id for one in later.waiting(INSTALL)] == [begun.id]
    again = later.begin(tiny)
    assert (again.id, again.attempts, again.status) == (begun.id, 2, "pending")
    later.finish(again.id, OperationStatus.CANCELLED, OperationError("CANCELLED", "c"))
    assert later.begin(tiny).id != begun.id
    with pytest.raises(Exception, match="UNIQUE"):
        OperationStore(db).add(_copy(begun))


def _copy(operation: Operation) -> Operation:
    return msgspec.structs.replace(operation, id="0" * 36)


def test_a_ready_version_has_an_operation_that_succeeded(db: Database, ledger: Operations) -> None:
    tiny = version(db)
    made_up = ledger.installed(tiny)
    assert (made_up.status, made_up.fraction) == ("succeeded", 1.0)
    assert ledger.installed(tiny) == made_up


def test_lists_filter_and_page(db: Database, ledger: Operations) -> None:
    ids = [ledger.begin(version(db, f"a/m{i}")).id for i in range(5)]
    ledger.finish(ids[0], OperationStatus.SUCCEEDED)
    assert [one.id for one in ledger.page().items] == ids[::-1]  # the newest first
    assert [one.id for one in ledger.page(status="succeeded").items] == ids[:1]
    assert ledger.page(status="active").total_items == 4
    assert [one.id for one in ledger.page(model_id="a--m2").items] == [ids[2]]
    second = ledger.page(kind="install", page=2, page_size=2)
    assert [one.id for one in second.items] == [ids[2], ids[1]]
    assert (second.total_items, second.total_pages) == (5, 3)
    with pytest.raises(ValidationFailed) as caught:
        ledger.page(status="odd", kind="x", page=0, page_size=101)
    assert set(caught.value.details["fields"]) == {"status", "kind", "page", "page_size"}
    with pytest.raises(OperationNotFound):
        ledger.get("nothing")


def test_old_operations_are_forgotten_but_none_that_runs(db: Database, ledger: Operations) -> None:
    ids = [ledger.begin(version(db, f"a/m{i}")).id for i in range(5)]
    for one in ids[1:]:
        ledger.finish(one, OperationStatus.SUCCEEDED)
    OperationStore(db).prune(kept=2)
    assert [one.id for one in ledger.page().items] == [ids[4], ids[3], ids[0]]


def test_an_operation_that_cannot_be_recorded_goes_on(db: Database, ledger: Operations) -> None:
    begun = ledger.begin(version(db))
    db.execute("PRAGMA query_only = ON")
    ledger.report(begun.id, EXPORTING)
    assert ledger.get(begun.id).phase == "exporting"
    ledger.finish(begun.id, OperationStatus.SUCCEEDED)  # not recorded: the next start finds it
    db.execute("PRAGMA query_only = OFF")
    assert [one.id for one in Operations(OperationStore(db)).waiting(INSTALL)] == [begun.id]


# -- watching ------------------------------------------------------------------------------------


async def watched(ledger: Operations, operation_id: str, **more: Any) -> list[Any]:
    return [
        one and (one.status.value, one.bytes_done)
        async for one in ledger.watch(operation_id, **more)
    ]


async def test_watchers_see_changes_and_the_end(db: Database, ledger: Operations) -> None:
    begun = ledger.begin(version(db))
    watching = [asyncio.create_task(watched(ledger, begun.id)) for _ in range(3)]
    for done in (1, 2):
        await asyncio.sleep(0)
        ledger.report(begun.id, downloaded(done))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    ledger.finish(begun.id, OperationStatus.SUCCEEDED)
    seen = await asyncio.gather(*watching)
    assert seen[0][0] == ("pending", None)
    assert seen[0][-1] == ("succeeded", 2)
    assert seen[0] == seen[1] == seen[2]
    assert await watched(ledger, begun.id) == [("succeeded", 2)]


async def test_a_slow_watcher_gets_the_newest_state(db: Database, ledger: Operations) -> None:
    begun = ledger.begin(version(db))
    changes = ledger.watch(begun.id)
    await anext(changes)
    for done in range(100):
        ledger.report(begun.id, downloaded(done))
    newest = await anext(changes)
    assert newest is not None
    assert newest.bytes_done == 99
    assert ledger.watchers == 1
    await changes.aclose()
    assert ledger.watchers == 0


async def test_silence_is_broken_by_heartbeats(db: Database, ledger: Operations) -> None:
    begun = ledger.begin(version(db))
    changes = ledger.watch(begun.id, heartbeat=0.01)
    assert await anext(changes) is not None
    assert await anext(changes) is None
    assert await anext(changes) is None
    await changes.aclose()


async def test_a_server_that_stops_sends_watchers_away(db: Database, ledger: Operations) -> None:
    begun = ledger.begin(version(db))
    watching = asyncio.create_task(watched(ledger, begun.id))
    await asyncio.sleep(0)
    ledger.stop_watching()
    assert await watching == [("pending", None)]
    with pytest.raises(OperationNotFound):
        await anext(ledger.watch("nothing"))


# -- the migration -------------------------------------------------------------------------------


def test_the_table_goes_and_comes_back_without_touching_models(
    db: Database, ledger: Operations
) -> None:
    tiny = version(db)
    ledger.finish(ledger.begin(tiny).id, OperationStatus.SUCCEEDED)
    migrate_down(db, to="m0001_registry")
    assert "operation" not in db.table_names()
    assert [row["id"] for row in db["model_version"].rows] == [tiny.id]
    migrate_up(db)
    assert Operations(OperationStore(db)).page().total_items == 0
    assert Operations(OperationStore(db)).begin(tiny).attempts == 1


def test_work_on_locks_is_kept_and_only_it_is_lost_on_the_way_back(
    db: Database, ledger: Operations
) -> None:
    install = ledger.begin(version(db))
    ledger.finish(install.id, OperationStatus.SUCCEEDED)
    action = Action(kind="install", model_id="org/tiny", version="main", reason="is missing")
    asked = LockWork(lock="default", lock_id="x", lock_version=3, prune=True)
    sync = ledger.begin_work(SYNC, asked.planned((action,)))
    drift = Drift(model_id="org/tiny", version="main", part="source", problem="missing", path="x")
    work = LockWork(lock="default", lock_version=3, drift=(drift,)).planned((action,))
    ledger.finish(sync.id, OperationStatus.FAILED, FAILURE, work.with_step(0, state="failed"))
    kept = OperationStore(db).get(sync.id)
    assert kept == ledger.get(sync.id)
    assert kept.work is not None
    assert (kept.work.steps[0].state, kept.work.drift) == ("failed", (drift,))
    before = OperationStore(db).get(install.id)
    migrate_down(db, to="m0007_current_status")
    assert [row["id"] for row in db["operation"].rows] == [install.id]
    with pytest.raises(Exception, match="no column named work"):
        ledger.begin_work(SYNC, asked)
    migrate_up(db)
    assert OperationStore(db).page().items == (before,)


def test_the_same_work_is_asked_for_by_what_decides_it() -> None:
    one = LockWork(lock="default", lock_id="x", lock_version=3)
    assert one.asks_the_same(one.planned(()))
    for other in ({"lock_version": 4}, {"frozen": True}, {"prune": True}, {"lock_id": "y"}):
        assert not one.asks_the_same(msgspec.structs.replace(one, **other))
    file = LockWork(lock="default")
    assert not file.asks_the_same(file)
