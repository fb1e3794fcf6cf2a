"""What a load does when Triton does not answer; the rest runs on the real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import ServiceUnavailable
from controlplane.lifecycle import effects
from controlplane.lifecycle.effects import TritonEffects
from tests.unit.test_scheduler import servable

if TYPE_CHECKING:
    from collections.abc import Sequence


class HangingTriton:
    """A client whose load never returns."""

    async def load(self, name: str, config: str, *, timeout: float) -> None:
        await asyncio.sleep(60)

    async def ready_versions(self, name: str) -> set[int]:
        return set()


class Processes:
    """A server that shows these processes of a model, the last ones for ever."""

    pid: int | None = None

    def __init__(self, shown: Sequence[list[int]]) -> None:
        self.shown = list(shown)
        self.killed = False

    def stub_pids(self, name: str, version: int) -> list[int]:
        return self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]

    def kill(self) -> bool:
        self.killed = True
        return True


class AnyConfig:
    """A repository in which every model is."""

    def load_config(self, *_: object) -> str:
        return "{}"


def loading(shown: Sequence[list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Processes]:
    monkeypatch.setattr(effects, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(effects, "LOOKS_WITHOUT_PROCESS", 5)
    server: Any = Processes(shown)
    client: Any = HangingTriton()
    repository: Any = AnyConfig()
    return TritonEffects(client, server, repository), server


async def test_a_load_whose_process_died_unnoticed_ends_with_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, server = loading([[], [7], []], monkeypatch)
    with pytest.raises(ServiceUnavailable):
        await asyncio.wait_for(target.load(servable("a"), 30.0), 10)
    assert server.killed


async def test_a_process_that_died_before_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    target, server = loading([[]], monkeypatch)
    server.pid = 1  # ours: without a process there is no load
    with pytest.raises(ServiceUnavailable):
        await asyncio.wait_for(target.load(servable("a"), 30.0), 10)
    assert server.killed


@pytest.mark.parametrize("shown", [[[]], [[], [7]], [[7], [], [], [8]]])
async def test_a_load_that_takes_long_is_let_alone(
    shown: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, server = loading(shown, monkeypatch)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(target.load(servable("a"), 30.0), 0.2)
    assert not server.killed
