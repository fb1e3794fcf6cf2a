"""Streams of an inference: what is sent when nothing comes, and when a process dies."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from controlplane.errors import InferenceFailed
from controlplane.events import EventBus
from controlplane.gateway.rest import event_messages
from controlplane.gateway.rest.event_messages import event_stream
from controlplane.inference.infer import InferenceService, InferRequest
from controlplane.inference.tasks.task import Event
from controlplane.registry.model import Servable, TaskType
from controlplane.registry.model_form import ModelForm
from controlplane.settings import Settings
from controlplane.triton.failures import StubUnhealthy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

DELTA = Event(name="delta", data={"text": "a"})


async def test_silence_is_told_and_then_failures_are_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_messages, "KEEP_ALIVE_SECONDS", 0.01)
    loaded = asyncio.Event()

    async def call() -> AsyncGenerator[Any, None]:
        await loaded.wait()
        yield DELTA
        raise InferenceFailed("org/m", "it broke")

    response = await event_stream(call(), "org/m")
    text = aiter(response.iterator)
    assert await anext(text) == b": still here\n\n"
    loaded.set()
    told = b"".join([part async for part in text])
    assert b'event: delta\ndata: {"text":"a"}\n\n' in told
    assert told.endswith(b'"status":500}\n\n')
    assert b"event: error\n" in told


async def test_a_failure_before_anything_was_told_is_raised() -> None:
    async def call() -> AsyncGenerator[Any, None]:
        raise InferenceFailed("org/m", "it broke")
        yield

    with pytest.raises(InferenceFailed, match="it broke"):
        await event_stream(call(), "org/m")


async def test_a_stream_that_is_left_ends_the_call() -> None:
    ended = asyncio.Event()

    async def call() -> AsyncGenerator[Any, None]:
        try:
            yield DELTA
            await asyncio.Event().wait()
        finally:
            ended.set()

    response = await event_stream(call(), "org/m")
    async with contextlib.aclosing(aiter(response.iterator)) as text:
        await anext(text)
    await asyncio.wait_for(ended.wait(), 5)


class DyingOnce:
    """A Triton client whose model's process dies under the first request."""

    def __init__(self, *, after: int) -> None:
        self.sent = 0
        self._after = after

    async def stream(self, *_: Any, **more: Any) -> AsyncIterator[dict[str, Any]]:
        self.sent += 1
        assert more["parameters"] == {"stream": True}
        pieces = [np.array([b"a"], object), np.array([b"b"], object)]
        for index, piece in enumerate(pieces):
            if self.sent == 1 and index == self._after:
                raise StubUnhealthy("Stub process 'm_0_0' is not healthy.")
            yield {"text_output": piece}


class OneModel:
    """A store and a scheduler of one model that is always there."""

    servable = Servable(
        model_id="org/m",
        version="main",
        version_id="1",
        task_type=TaskType.TXT2TXT,
        triton_name="org--m",
        triton_version=1,
        need_mb=1.0,
        form=ModelForm(decoupled=True, max_batch_size=0),
    )

    def __init__(self) -> None:
        self.leases = 0

    def view_of(self, _name: str, _version: int) -> None:
        """Whose process nobody can see."""

    def view(self, _: str) -> None:
        return None

    @contextlib.asynccontextmanager
    async def lease(self, servable: Servable, **_: Any) -> AsyncIterator[Servable]:
        self.leases += 1
        yield servable

    def service(self, client: DyingOnce) -> InferenceService:
        store: Any = type("Store", (), {"servable": lambda *_: self.servable})()
        scheduler: Any = self
        return InferenceService(store, scheduler, client, EventBus(), settings=Settings())  # type: ignore[arg-type]


async def test_a_process_that_dies_before_the_first_piece_is_asked_once_more() -> None:
    model, client = OneModel(), DyingOnce(after=0)
    call = model.service(client).stream("org/m", None, InferRequest(input_data={"prompt": "x"}))
    told = [event async for event in call]
    assert [event.data["text"] for event in told[:-1]] == ["a", "b"]
    assert told[-1].output_data["text"] == "ab"
    assert (model.leases, client.sent) == (2, 2)


async def test_after_the_first_piece_it_is_not() -> None:
    model, client = OneModel(), DyingOnce(after=1)
    call = model.service(client).stream("org/m", None, InferRequest(input_data={"prompt": "x"}))
    assert await anext(call) == DELTA
    with pytest.raises(InferenceFailed, match="not healthy"):
        await anext(call)
    assert model.leases == 1
