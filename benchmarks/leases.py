"""What the scheduler itself costs: leases of loaded models, and many waiters on one cold model.

Without Triton: the way of a request through the scheduler contains none of it. Garbage collection
is on, the event loop is the server's (uvloop).
"""

# ruff: noqa: ARG002 the effects' interface
from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

import uvloop

from benchmarks import setting
from controlplane.events import EventBus
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.policy import Residency
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.registry.model import Servable, TaskType

if TYPE_CHECKING:
    from collections.abc import Sequence

LOAD_SECONDS = 0.2


class _TimedEffects:
    """Loads take a moment and succeed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.loads = 0
        self.loaded_at = 0.0

    async def load(self, servable: Servable, timeout: float) -> Loaded:
        self.loads += 1
        await asyncio.sleep(self.seconds)
        self.loaded_at = time.perf_counter()
        return Loaded(1.0, None, self.seconds, 1.0)

    async def unload(self, servable: Servable, timeout: float) -> None:
        return None

    def fit_together(self, one: Servable, other: Servable) -> bool:
        return True

    async def probe(self, servable: Servable) -> float:
        return 1.0

    def kill_server(self) -> bool:
        return False


def _servable(number: int) -> Servable:
    return Servable(
        model_id=f"org/m{number}",
        version="main",
        version_id=str(number),
        task_type=TaskType.TXT2EMBED,
        triton_name=f"org--m{number}",
        triton_version=1,
        need_mb=1.0,
        floating=True,
    )


async def lease_times(known: int, loaded: int, count: int) -> tuple[float, float]:
    """Median and 99th percentile in microseconds of entering and leaving a lease.

    Args:
        known: models that were in memory once; `loaded` of them are now, and are leased in turn.
    """
    scheduler = Scheduler(
        _TimedEffects(0.0), EventBus(), budget_mb=1e6, max_models=loaded, load_timeout=60
    )
    deadline = asyncio.get_running_loop().time() + 600
    for number in range(known):
        await scheduler.wait_until_loaded(_servable(number), deadline, 3, takes_lease=False)
        if number < known - loaded:
            await scheduler.unload(f"org/m{number}")
    models = [_servable(number) for number in range(known - loaded, known)]
    times = []
    for turn in range(count):
        model = models[turn % loaded]
        begun = time.perf_counter()
        async with scheduler.lease(model, deadline=deadline):
            pass
        times.append((time.perf_counter() - begun) * 1e6)
    await scheduler.close()
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


async def contended_lease_times(loaded: int, waiting: int, count: int) -> tuple[float, float]:
    """As `lease_times`, while `waiting` other models wait for room in vain."""
    endless = Residency(shortest_turn=1e4, longest_turn=1e4, grace=1.0, patience=1e4)
    scheduler = Scheduler(
        _TimedEffects(0.0),
        EventBus(),
        budget_mb=1e6,
        max_models=loaded,
        load_timeout=60,
        residency=endless,
    )
    deadline = asyncio.get_running_loop().time() + 600
    models = [_servable(number) for number in range(loaded)]
    for model in models:
        await scheduler.wait_until_loaded(model, deadline, 3, takes_lease=False)
    line = [
        asyncio.ensure_future(
            scheduler.wait_until_loaded(_servable(loaded + number), deadline, 3, takes_lease=False)
        )
        for number in range(waiting)
    ]
    await asyncio.sleep(0.01)
    times = []
    for turn in range(count):
        begun = time.perf_counter()
        async with scheduler.lease(models[turn % loaded], deadline=deadline):
            pass
        times.append((time.perf_counter() - begun) * 1e6)
    await scheduler.close()
    await asyncio.gather(*line, return_exceptions=True)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


async def crowd(waiters: int) -> tuple[int, float]:
    """Loads that `waiters` on one cold model cause, and ms from its load to the last lease."""
    effects = _TimedEffects(LOAD_SECONDS)
    scheduler = Scheduler(effects, EventBus(), budget_mb=10, max_models=1, load_timeout=60)
    deadline = asyncio.get_running_loop().time() + 60

    async def one() -> float:
        async with scheduler.lease(_servable(0), deadline=deadline):
            return time.perf_counter()

    ends = await asyncio.gather(*(one() for _ in range(waiters)))
    await scheduler.close()
    return effects.loads, (max(ends) - effects.loaded_at) * 1000


async def _measure() -> list[list[object]]:
    rows: list[list[object]] = []
    for known, loaded in ((1, 1), (1000, 50)):
        median, slow = await lease_times(known, loaded, 100_000)
        what = f"lease of a loaded model, {known:,} known, {loaded} loaded (p50 / p99)"
        rows.append([what, f"{median:.1f} / {slow:.1f} µs", "≤ 20 µs"])
    median, slow = await contended_lease_times(50, 25, 20_000)
    what = "the same, 50 loaded, while 25 others wait for room"
    rows.append([what, f"{median:.1f} / {slow:.1f} µs", "≤ 20 µs"])
    for waiters in (100, 1000):
        loads, late = await crowd(waiters)
        what = f"{waiters:,} waiters on one cold model: loads, last lease after the load"
        rows.append([what, f"{loads}, {late:.1f} ms", "1, ≤ 100 ms"])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:  # noqa: ARG001 as its siblings
    """Command line of `python -m benchmarks.leases`."""
    setting.print_machine()
    loop = uvloop.new_event_loop()
    try:
        rows = loop.run_until_complete(_measure())
    finally:
        loop.close()
    setting.print_table("The scheduler itself", ["what", "found", "aim"], rows)


if __name__ == "__main__":
    main()
