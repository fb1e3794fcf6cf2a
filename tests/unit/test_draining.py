"""The HTTP port while the service stops: what runs ends well, what is new is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from controlplane.gateway.draining import Draining

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.gateway.asgi import Receive, Scope, Send


class Slow:
    """An application whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/broken":
            raise RuntimeError("broken")
        if scope["path"] == "/slow":
            await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


class Port:
    def __init__(self) -> None:
        self.app = Slow()
        self.draining = Draining(self.app)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.draining), base_url="http://test"
        )

    def get(self, path: str) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.http.get(path))


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    port = Port()
    yield port
    await port.http.aclose()


async def test_all_is_served_before(port: Port) -> None:
    answer = await port.get("/anything")
    assert answer.status_code == 200
    assert "connection" not in answer.headers
    assert await port.draining.idle(0.0)


async def test_what_runs_is_waited_for(port: Port) -> None:
    running = port.get("/slow")
    await asyncio.sleep(0.01)
    port.draining.begin()
    assert not await port.draining.idle(0.01)
    assert port.draining.running == 1
    port.app.gate.set()
    assert await port.draining.idle(5.0)
    assert (await running).text == "done"


async def test_what_fails_is_not_waited_for(port: Port) -> None:
    with pytest.raises(RuntimeError):
        await port.get("/broken")
    assert await port.draining.idle(0.0)


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/api/v1/models", 503, {"code": "SERVICE_UNAVAILABLE"}),
        ("/v2/models/x/infer", 503, "The service is stopping."),
        ("/v2/health/ready", 503, "The service is stopping."),
        ("/health/ready", 503, None),
        ("/health/live", 200, None),
        ("/health", 200, None),
        ("/v2/health/live", 200, None),
        ("/metrics", 200, None),
        ("/api/v1/status", 200, None),
    ],
)
async def test_afterwards_only_those_who_look_are_served(
    port: Port, path: str, status: int, body: Any
) -> None:
    port.draining.begin()
    answer = await port.get(path)
    assert answer.status_code == status
    assert answer.headers["connection"] == "close"
    if status == 503:
        assert answer.headers["retry-after"] == "2"
    if isinstance(body, str):
        assert answer.json() == {"error": body}
    elif body is not None:
        assert answer.json()["error"].items() >= body.items()


async def test_other_protocols_pass(port: Port) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    draining = Draining(app)
    draining.begin()
    await draining({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
