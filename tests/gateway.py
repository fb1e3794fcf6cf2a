"""The gateway on free ports before a real Triton, with a real store and the real scheduler.

Only the way into memory is shortened: models are loaded as they lie in the repository.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from controlplane.db import open_db
from controlplane.events import DomainEvent, EventBus
from controlplane.gateway.draining import Draining
from controlplane.gateway.http_direct import speaking
from controlplane.gateway.rest import create_app
from controlplane.gateway.services import Services
from controlplane.gateway.v2_grpc import GrpcGateway
from controlplane.inference.infer import InferenceService
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.observability.metrics import Metrics
from controlplane.registry.model import NewModel
from controlplane.registry.operation_store import OperationStore
from controlplane.registry.operations import Operations
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from tests.locks import lock_services
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.registry.model import Servable
    from controlplane.triton.client import TritonClient
    from controlplane.triton.server import TritonServer

CHECKSUM = "sha256:" + "0" * 64


class PlainEffects:
    """Loads what lies in the repository, without measuring or probing it."""

    def __init__(self, client: TritonClient) -> None:
        self._client = client
        self.loads: list[str] = []

    async def load(self, servable: Servable, timeout: float) -> Loaded:
        self.loads.append(servable.model_id)
        await self._client.load(servable.triton_name, None, timeout=timeout)
        return Loaded(memory_mb=10.0, process_id=None, seconds=0.1, response_time_ms=1.0)

    async def unload(self, servable: Servable, timeout: float) -> None:
        await self._client.unload(servable.triton_name, timeout=timeout)

    async def restart_server(self) -> bool:
        return False


class IdleInstaller:
    """An installer that never has anything to do."""

    def __init__(self, store: ModelStore) -> None:
        self.operations = Operations(OperationStore(store.db))

    def progress(self, model_id: str) -> None:
        return None


@dataclass
class Gateway:
    """A running gateway and what stands behind it."""

    services: Services
    effects: PlainEffects
    events: list[DomainEvent]
    http_port: int
    grpc_port: int

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def add_model(
        self,
        model_id: str,
        version: str = "main",
        *,
        ready: bool = True,
        task_type: str = "txt2embed",
        manifest: dict[str, Any] | None = None,
    ) -> None:
        """Register a model and, unless told otherwise, take it as installed."""
        store = self.services.store
        store.register(NewModel(model_id=model_id, task_type=task_type, version=version))
        if ready:
            make_ready(store, model_id, version, manifest)

    def leases(self, model_id: str) -> int:
        """Requests that hold the model now."""
        view = self.services.scheduler.view(model_id)
        return view.active_requests if view else 0


def make_ready(
    store: ModelStore, model_id: str, version: str, manifest: dict[str, Any] | None = None
) -> None:
    """Move a registered version to ready, as an installation would."""
    store.set_status(model_id, version, "downloading")
    store.pin(model_id, version, revision=None, checksum=CHECKSUM, artifact_uri="file:///m")
    store.set_status(model_id, version, "exporting")
    manifest = {
        "backend": "text_embedding",
        "engine": "onnxruntime",
        "text_embedding": {"dimension": 4, "max_seq_length": 128},
        "parity": {"min_cosine": 1.0, "max_abs_diff": 0.0},
        **(manifest or {}),
    }
    store.mark_ready(
        model_id, version, manifest=manifest, artefact_bytes=1000, artefact_checksum=CHECKSUM
    )


@contextlib.asynccontextmanager
async def running_gateway(
    server: TritonServer, client: TritonClient, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway before `server`, on the test's event loop."""
    bus, events = EventBus(), list[DomainEvent]()
    bus.subscribe(DomainEvent, events.append)
    db = open_db(":memory:")
    store = ModelStore(db, bus)
    effects = PlainEffects(client)
    scheduler = Scheduler(effects, bus, budget_mb=10_000, max_models=10, load_timeout=30)
    chosen = Settings(**({"request_timeout": 20.0} | settings))
    installer = IdleInstaller(store)
    services = Services(
        settings=chosen,
        store=store,
        installer=installer,
        scheduler=scheduler,
        inference=InferenceService(store, scheduler, client, bus, settings=chosen),
        server=server,
        client=client,
        bus=bus,
        render_metrics=Metrics(bus, scheduler, version="0.0.0").render,
        started_at=time.monotonic(),
        version="0.0.0",
        check_database=lambda: db.execute("SELECT 1").fetchone(),
        **lock_services(store, db, bus, installer, chosen.data_dir),
    )
    grpc_gateway = GrpcGateway(services, "127.0.0.1", 0)
    grpc_port = await grpc_gateway.start()
    async with _http_server(services) as http_port:
        yield Gateway(services, effects, events, http_port, grpc_port)
    await grpc_gateway.stop(0)
    await scheduler.close()
    db.close()


@contextlib.asynccontextmanager
async def _http_server(services: Services) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(services)
    draining = Draining(app)
    config = uvicorn.Config(
        draining,
        http=speaking(app.direct, draining),
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    await eventually(lambda: server.started)
    yield listening.getsockname()[1]
    server.should_exit = True
    await serving
    await app.close()
    listening.close()
