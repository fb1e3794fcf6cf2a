"""The control plane on a Triton that somebody else runs, its control APIs behind their secret."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.models import tiny_bert
from tests.service import Service
from tests.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

TINY = "tests/tiny-external"


async def test_install_and_infer_on_an_external_triton(
    triton: BackgroundTriton, triton_client: TritonClient, tmp_path: Path
) -> None:
    endpoints = triton.endpoints
    ((name, value),) = endpoints.http_headers.items()
    service = Service(
        tmp_path / "service",
        forking=True,
        MODEL_REPOSITORY=str(triton.repository),
        TRITON_GRPC_URL=endpoints.grpc_url,
        TRITON_HTTP_URL=endpoints.http_url,
        TRITON_CONTROL_HEADER=f"{name}={value}",
    )
    source = tiny_bert(tmp_path / "source")
    try:
        service.start()
        with service.client() as client:
            assert client.status().triton["kind"] == "external"
            client.install(TINY, source_url=source.as_uri(), timeout=120)
            result = client.infer(TINY, {"text": "hello"})
            assert len(result.output_data["embedding"]) == result.output_data["dimension"]
            (loaded,) = client.status().loaded_models
            assert loaded.state == "loaded"
            client.install(TINY, "v2", timeout=120)
            switched = client.use(TINY, "v2")
            assert (switched.version, switched.previous_version) == ("v2", "main")
            assert switched.switch in ("live", "drained")
            assert client.infer(TINY, {"text": "hello"}).version == "v2"
            client.remove_version(TINY, "main")
            assert client.infer(TINY, {"text": "hello"}).version == "v2"
            assert value not in str(client.settings())
        assert "tritonserver" not in {p.name() for p in service.family()}
        assert service.stop() == 0
        assert value not in service.log
        # It is not our server: it goes on, without our models.
        assert await triton_client.live()
        ready = {entry.name for entry in await triton_client.index() if entry.state == "READY"}
        assert TINY.replace("/", "--") not in ready
    finally:
        service.end()


class Wire:
    """A port that leads to another one while it is open."""

    def __init__(self, target: str) -> None:
        self._target = target.rpartition(":")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target
        there, back = await asyncio.open_connection(host, int(port))
        ends = {writer, back}
        self._ends |= ends
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        self._ends -= ends

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_a_triton_that_is_away_at_the_start_and_later(
    triton: BackgroundTriton, tmp_path: Path
) -> None:
    """The service starts, says so, refuses with Retry-After, and recovers alone."""
    wire = Wire(triton.endpoints.grpc_url)
    ((name, value),) = triton.endpoints.http_headers.items()
    service = Service(
        tmp_path / "service",
        forking=True,
        MODEL_REPOSITORY=str(triton.repository),
        TRITON_GRPC_URL=f"127.0.0.1:{wire.port}",
        TRITON_CONTROL_HEADER=f"{name}={value}",
        REQUEST_TIMEOUT="2",
    )
    model_id = "tests/tiny-away"
    source = await asyncio.to_thread(tiny_bert, tmp_path / "source")

    async with httpx.AsyncClient(timeout=60) as http:

        async def ask(seconds: int) -> httpx.Response:
            body = {"input_data": {"text": "hello"}, "timeout_seconds": seconds}
            return await http.post(f"{service.url}/api/v1/infer/{model_id}", json=body)

        async def ready() -> int:
            return (await http.get(f"{service.url}/health/ready")).status_code

        async def is_ready() -> bool:
            return await ready() == 200

        async def is_away() -> bool:
            return await ready() == 503

        def install() -> None:
            with service.client() as client:
                assert client.status().triton["state"] == "lost"
                client.install(model_id, source_url=source.as_uri(), timeout=120)

        try:
            await asyncio.to_thread(service.start)
            assert await is_away()
            await asyncio.to_thread(install)
            refused = await ask(2)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            await wire.open()
            await eventually(is_ready)
            assert (await ask(60)).status_code == 200  # loading takes a while
            await wire.cut()
            await eventually(is_away)
            assert (await ask(2)).status_code == 503
            await wire.open()  # the server has the model still: it is no stranger's
            await eventually(is_ready)
            assert (await ask(60)).status_code == 200  # loading takes a while
            assert await asyncio.to_thread(service.stop) == 0
        finally:
            await asyncio.to_thread(service.end)
            await wire.cut()
