"""What is measured, what is kept of it, and what is told when it is too much."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.db import open_db
from controlplane.errors import ValidationFailed
from controlplane.events import EventBus
from controlplane.lifecycle import memory
from controlplane.lifecycle.gpu import GpuMemory
from controlplane.lifecycle.growth import ServerGrowth
from controlplane.lifecycle.memory import MemoryUsage
from controlplane.lifecycle.memory_log import MemoryLog
from controlplane.registry.memory_history import MemoryHistory
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1024 * 1024


# -- processes -----------------------------------------------------------------------------------


def test_a_process_tree_is_measured_with_all_that_is_below_it() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', %r])"
    hoard = "import time; x = b'x' * 50_000_000; print('ready', flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script % hoard], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    try:
        usage = memory.usage_of({"tree": [parent.pid], "gone": [2**22 + 1]})
        alone = memory.usage_of_process(parent.pid)
        assert usage.keys() == {"tree"}
        assert alone is not None
        assert usage["tree"].used_mb > 48 > alone.used_mb
        assert usage["tree"].gpu_mb is None
        assert memory.process_tree_mb([parent.pid]) == pytest.approx(usage["tree"].used_mb, rel=0.2)
    finally:
        subprocess.run(["pkill", "-P", str(parent.pid)], check=False)
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert memory.process_tree_mb([parent.pid]) is None
    assert memory.usage_of_process(parent.pid) is None


def test_processor_time_tells_work_from_waiting() -> None:
    before = memory.processor_seconds([os.getpid(), 2**22 + 1])
    sum(range(3_000_000))
    assert memory.processor_seconds([os.getpid()]) > before


def test_available_memory_is_what_the_narrowest_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.available_mb() > 0
    monkeypatch.setattr(memory, "memory_groups", lambda: [SimpleNamespace(available=5 * MB)])
    assert memory.available_mb() == 5.0


# -- GPUs ----------------------------------------------------------------------------------------


class Nvml:
    """The functions of `pynvml` that are called, over figures of the test's own.

    Attributes:
        devices: of each GPU, process id -> bytes; None where the driver does not say.
    """

    def __init__(self, *devices: dict[int, int | None]) -> None:
        self.devices = devices
        self.initialised = False
        self.broken = False

    def nvmlInit(self) -> None:
        self.initialised = True

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[int, int | None]:
        return self.devices[index]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        if self.broken:
            raise RuntimeError("GPU is lost")
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in handle.items()]


def test_memory_on_all_gpus_is_added_up() -> None:
    nvml = Nvml({10: 100 * MB, 11: 7 * MB}, {10: 50 * MB, 12: None})
    gpus = GpuMemory(nvml)
    assert nvml.initialised
    assert gpus.used_mb({10}) == 150.0
    assert gpus.used_mb({10, 11}) == 157.0
    assert gpus.used_mb({99}) is None  # none of them uses a GPU, or its id is another one there
    assert gpus.used_mb({10, 12}) is None  # the driver keeps one to itself
    nvml.broken = True
    assert gpus.used_mb({10}) is None


def test_processes_are_measured_with_their_part_of_the_gpu() -> None:
    gpus = GpuMemory(Nvml({os.getpid(): 3 * MB}))
    assert memory.usage_of({"": [os.getpid()]}, gpus)[""].gpu_mb == 3.0


# -- growth of the server ------------------------------------------------------------------------


class Sizes(ServerGrowth):
    """With a server whose size the test says."""

    def __init__(self, *sizes: MemoryUsage | None) -> None:
        super().__init__(SimpleNamespace(pid=1), None)  # type: ignore[arg-type]
        self.sizes = list(sizes)

    async def _usage(self) -> MemoryUsage | None:
        await asyncio.sleep(0)
        return self.sizes.pop(0)


async def test_growth_is_the_difference_and_never_negative() -> None:
    growth = Sizes(MemoryUsage(100.0), MemoryUsage(130.0), MemoryUsage(130.0), MemoryUsage(120.0))
    for expected in (30.0, 0.0):
        before = await growth.begin()
        growth.end()
        assert await growth.since(before) == MemoryUsage(expected)


async def test_growth_on_the_gpu() -> None:
    growth = Sizes(MemoryUsage(1.0, 5.0), MemoryUsage(2.0, 9.0), MemoryUsage(1.0), None)
    before = await growth.begin()
    growth.end()
    assert await growth.since(before) == MemoryUsage(1.0, 4.0)
    before = await growth.begin()
    growth.end()
    assert await growth.since(before) is None  # the server has gone


@pytest.mark.parametrize("overlap", ["load", "unload", "load before"])
async def test_nothing_is_said_while_others_change_the_servers_memory(overlap: str) -> None:
    growth = Sizes(*[MemoryUsage(float(size)) for size in range(100, 110)])
    if overlap == "load before":
        await growth.begin()
    before = await growth.begin()
    if overlap == "load":
        await growth.begin()
    if overlap == "unload":
        growth.disturb()
    assert await growth.since(before) is None


# -- what is kept --------------------------------------------------------------------------------


def servable(version_id: str = "v") -> Any:
    return SimpleNamespace(version_id=version_id)


def test_a_load_is_kept_and_changes_of_a_twentieth() -> None:
    written: list[tuple[float, float, str]] = []
    log = MemoryLog(lambda _, usage, peak, reason: written.append((usage.used_mb, peak, reason)))
    log.loaded(servable(), MemoryUsage(100.0))
    for used_mb in (101.0, 104.9, 120.0, 119.0, 90.0):
        log.sampled(servable(), MemoryUsage(used_mb))
    assert written == [
        (100.0, 100.0, "load"),
        (120.0, 120.0, "change"),
        (90.0, 120.0, "change"),
    ]
    log.sampled(servable("other"), MemoryUsage(5.0))  # adopted, or from before
    assert written[-1] == (5.0, 5.0, "load")


@given(st.lists(st.floats(0.0, 1e6), min_size=1))
def test_what_is_kept_follows_what_was_seen(samples: list[float]) -> None:
    written: list[tuple[float, float]] = []
    log = MemoryLog(lambda _, usage, peak, __: written.append((usage.used_mb, peak)))
    for used_mb in samples:
        log.sampled(servable(), MemoryUsage(used_mb))
        last, peak = written[-1]
        assert abs(used_mb - last) <= 0.05 * last
        assert last <= peak <= max(samples)


@pytest.fixture
def store() -> Iterator[ModelStore]:
    db = open_db(":memory:")
    yield ModelStore(db, EventBus())
    db.close()


def test_the_history_is_paged_newest_first_and_pruned(store: ModelStore) -> None:
    model = store.register(NewModel(model_id="org/name", task_type="txt2embed", version="main"))
    version = store.version(model.model_id)
    history = MemoryHistory(store.db, kept=3)
    for used_mb in (1.0, 2.0, 3.0, 4.0):
        history.add(version.id, used_mb=used_mb, peak_mb=9.0, gpu_mb=None, reason="change")
    history.add("unknown", used_mb=1.0, peak_mb=1.0, gpu_mb=None, reason="load")
    page = history.page([version.id], page_size=2)
    assert [(r.version, r.used_mb, r.peak_mb, r.gpu_mb) for r in page.items] == [
        ("main", 4.0, 9.0, None),
        ("main", 3.0, 9.0, None),
    ]
    assert (page.total_items, page.total_pages) == (3, 2)
    assert [r.used_mb for r in history.page([version.id], page=2, page_size=2).items] == [2.0]
    assert history.page([]).items == ()


def test_the_history_goes_with_its_version(store: ModelStore) -> None:
    model = store.register(NewModel(model_id="org/name", task_type="txt2embed", version="main"))
    version = store.version(model.model_id)
    store.memory_history.add(version.id, used_mb=1, peak_mb=0, gpu_mb=2, reason="load")
    (record,) = store.memory_history.page([version.id]).items
    assert (record.peak_mb, record.gpu_mb) == (1.0, 2.0)
    store.delete(model.model_id)
    assert store.memory_history.page([version.id]).total_items == 0


@pytest.mark.parametrize("wrong", [{"page": 0}, {"page_size": 0}, {"page_size": 101}])
def test_pages_have_limits(store: ModelStore, wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationFailed) as caught:
        store.memory_history.page([], **wrong)  # type: ignore[arg-type]
    assert set(caught.value.details["fields"]) == set(wrong)
