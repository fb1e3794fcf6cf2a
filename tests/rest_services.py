"""The REST API's services with a real store and scheduler; what computes or downloads is a stub."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.events import EventBus
from controlplane.gateway.services import Services
from controlplane.inference.infer import InferMetadata, InferResult
from controlplane.lifecycle.effects import Loaded
from controlplane.lifecycle.scheduler import Scheduler
from controlplane.observability.metrics import Metrics
from controlplane.registry.installation import Workshop
from controlplane.registry.operation_store import OperationStore
from controlplane.registry.operations import Operations
from controlplane.registry.store import ModelStore
from controlplane.settings import Settings
from controlplane.triton.server import Endpoints
from tests.locks import lock_services

if TYPE_CHECKING:
    from pathlib import Path

    from sqlite_utils import Database

    from controlplane.registry.model import Servable

BUDGET_MB = 500.0


class InstantEffects:
    async def load(self, servable: Servable, timeout: float) -> Loaded:
        return Loaded(memory_mb=12.34, process_id=4711, seconds=0.2, response_time_ms=3.0)

    async def unload(self, servable: Servable, timeout: float) -> None:
        return None

    async def restart_server(self) -> bool:
        return False


class RecordingInstaller:
    """Remembers what it was asked for."""

    def __init__(self, store):
        self.store = store
        self.running = {}
        self.operations = Operations(OperationStore(store.db))
        self.asked = []
        self.shop = Workshop(store, None, Settings())

    def install(self, model_id, version):
        self.asked.append((model_id, version))
        wanted = self.store.version(model_id, version)
        self.store.set_status(model_id, wanted.version, "downloading")
        return self.operations.begin(wanted)

    def progress(self, model_id):
        return self.running.get(model_id)

    async def uninstall(self, model_id, *, force=False, expected_version=None):
        self.store.delete(model_id, force=force, expected_version=expected_version)


class EchoInference:
    """Answers with the request it was given; raises what it was told to."""

    error = None

    async def infer(self, name, version, request):
        if self.error is not None:
            raise self.error
        return InferResult(
            model_id=name,
            version=version or "main",
            output_data=msgspec.to_builtins(request),
            metadata=InferMetadata(
                inference_time_ms=1.5, total_time_ms=2.0, batch_size=1, device="cpu"
            ),
        )


class StillServer:
    """A server that is only looked at."""

    def __init__(self):
        self.state = "ready"
        self.pid = None
        self.endpoints = Endpoints(grpc_url="127.0.0.1:1", http_url="http://127.0.0.1:2")


def rest_services(
    db: Database, tmp_path: Path, settings: Settings, effects: Any = None, **others: Any
) -> Services:
    """All of them, over a database that the caller closes; `others` are fields of `Services`."""
    bus = EventBus()
    store = ModelStore(db, bus)
    scheduler = Scheduler(
        effects or InstantEffects(), bus, budget_mb=BUDGET_MB, max_models=3, load_timeout=10
    )
    installer = RecordingInstaller(store)
    return Services(
        settings=settings,
        store=store,
        installer=installer,
        scheduler=scheduler,
        inference=EchoInference(),
        server=StillServer(),
        client=None,
        bus=bus,
        render_metrics=Metrics(bus, scheduler, version="1.2.3").render,
        started_at=time.monotonic(),
        version="1.2.3",
        **lock_services(store, db, bus, installer, tmp_path),
        **others,
    )
