"""What an unload does when Triton keeps the model; the rest runs on the real server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from controlplane.lifecycle import memory, unloading
from controlplane.lifecycle.unloading import Unloading

if TYPE_CHECKING:
    import pytest

KEY = ("a--b", 1)


class KeepingTriton:
    """A client whose unload never returns."""

    async def ready_versions(self, name: str) -> set[int]:
        return {KEY[1]} if name == KEY[0] else set()

    async def unload(self, name: str, *, timeout: float) -> None:
        await asyncio.sleep(60)


class OneProcess:
    """A server with one process of the model, until it is killed."""

    def __init__(self) -> None:
        self.pids = [1]
        self.killed_at: float | None = None

    def stub_pids(self, name: str, version: int) -> list[int]:
        return list(self.pids)

    def kill_stubs(self, name: str, version: int) -> int:
        killed = len(self.pids)
        self.killed_at = self.killed_at or time.monotonic()
        self.pids = []
        return killed


async def unloaded_after(
    monkeypatch: pytest.MonkeyPatch, *, busy: float, timeout: float
) -> tuple[float, OneProcess]:
    """Seconds until the process was killed; it computes for the first `busy` seconds."""
    monkeypatch.setattr(unloading, "IDLE_LIMIT", 0.3)
    monkeypatch.setattr(unloading, "LOOK_EVERY", 0.01)
    began = time.monotonic()
    monkeypatch.setattr(memory, "processor_seconds", lambda _: min(time.monotonic() - began, busy))
    client: Any = KeepingTriton()
    server: Any = OneProcess()
    await Unloading(client, server, repository=None).unload(*KEY, timeout)  # type: ignore[arg-type]
    assert server.killed_at is not None
    return server.killed_at - began, server


async def test_a_process_that_triton_keeps_though_it_is_idle_is_ended_long_before_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds, server = await unloaded_after(monkeypatch, busy=0.0, timeout=50.0)
    assert 0.3 <= seconds < 30
    assert server.pids == []


async def test_one_that_computes_is_left_alone_until_it_has_been_idle_for_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds, _ = await unloaded_after(monkeypatch, busy=0.5, timeout=50.0)
    assert seconds >= 0.8


async def test_one_that_computes_for_ever_is_ended_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds, _ = await unloaded_after(monkeypatch, busy=1e9, timeout=1.5)
    assert 0.5 <= seconds < 30
