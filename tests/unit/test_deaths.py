"""The end of any process is noticed, at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from controlplane.lifecycle.deaths import ProcessWatch
from tests.waiting import eventually

if TYPE_CHECKING:
    import pytest


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


async def test_those_that_are_kept_in_sight_are_told_of() -> None:
    ended: list[int] = []
    watch = ProcessWatch(ended.append)
    seen, dropped, left = sleeper(), sleeper(), sleeper()
    watch.keep({seen.pid, dropped.pid, left.pid})
    watch.keep({seen.pid, left.pid})
    dropped.kill()
    dropped.wait()
    seen.kill()
    await eventually(lambda: ended == [seen.pid])
    seen.wait()
    watch.keep({left.pid})
    watch.close()
    left.kill()
    left.wait()
    await asyncio.sleep(0)
    assert ended == [seen.pid]


async def test_a_process_that_is_gone_is_nothing_to_watch() -> None:
    process = sleeper()
    process.kill()
    process.wait()
    watch = ProcessWatch(lambda _: None)
    watch.keep({process.pid})
    watch.close()


async def test_descriptors_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    watch = ProcessWatch(lambda _: None)
    for _ in range(20):
        watch.keep({process.pid})
        watch.keep(set())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    monkeypatch.delattr(os, "pidfd_open")
    watch.keep({process.pid})  # an old kernel or Python: somebody must look
    watch.close()
    process.kill()
    process.wait()


def test_on_uvloop() -> None:
    script = """
import asyncio, subprocess, uvloop
from controlplane.lifecycle.deaths import ProcessWatch
async def main():
    child = subprocess.Popen(["sleep", "60"])
    ended = asyncio.Event()
    watch = ProcessWatch(lambda _: ended.set())
    watch.keep({child.pid})
    child.kill()
    await asyncio.wait_for(ended.wait(), 20)
    child.wait()
uvloop.run(main())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=30)
