"""The composition root: the only place where objects meet, and the order of start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING

import msgspec
import psutil
import structlog
import uvicorn

from controlplane.app_lifecycle import Lifecycle
from controlplane.database_watch import check, keep_watch
from controlplane.db import append_event, open_db, transaction
from controlplane.errors import DatabaseUnusable, ModelMoraError
from controlplane.events import LIFECYCLE, DomainEvent, EventBus
from controlplane.exclusive import check_free, listen, own_data_dir
from controlplane.gateway.draining import Draining
from controlplane.gateway.http_direct import speaking
from controlplane.gateway.rest import create_app
from controlplane.gateway.services import Services
from controlplane.gateway.v2_grpc import GrpcGateway
from controlplane.inference.infer import InferenceService
from controlplane.lifecycle.removal import remove_model
from controlplane.lifecycle.versions import reload_version, use_version
from controlplane.observability.logs import configure_logging
from controlplane.observability.metrics import Metrics
from controlplane.registry import curated, plugins
from controlplane.registry.install import Installer
from controlplane.registry.lock_operations import LockOperations
from controlplane.registry.lock_store import LockStore
from controlplane.registry.locking import Locking
from controlplane.registry.repository import ModelRepository
from controlplane.registry.store import ModelStore
from controlplane.registry.sync import Machine
from controlplane.triton import processes
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.external import ExternalTriton

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from sqlite_utils import Database

    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import ModelVersion
    from controlplane.settings import Settings
    from controlplane.triton.server import TritonServer

log = structlog.get_logger(__name__)

# What is left after the drain is cut off so soon, in seconds.
CUT_OFF = 1


def package_version() -> str:
    """ModelMora's version, from the installed distribution."""
    return distribution_version("modelmora")


class Application:
    """Everything, wired. `start` and `stop` may each be called once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started_at = time.monotonic()
        self._exit = contextlib.AsyncExitStack()
        self._server: TritonServer | None = None
        self.http_port = settings.port
        self.grpc_port = settings.grpc_port

    async def start(self) -> None:
        """Start all parts; returns when requests are served.

        Raises:
            StartupError: one line that says what is wrong and what to do; nothing stays behind.
        """
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise

    async def stop(self) -> None:
        """Stop accepting, let running requests end, unload, stop Triton; leaves nothing behind."""
        log.info("stopping")
        await self._exit.aclose()
        log.info("stopped")

    def abort(self) -> None:
        """End every process below ours at once, and clear Triton's shared memory; no waiting."""
        processes.kill_all(psutil.Process().children(recursive=True))
        if self._server is not None:
            self._server.abort()
        (self.settings.data_dir / "server.json").unlink(missing_ok=True)

    async def _start(self) -> None:
        settings = self.settings
        data_lock = own_data_dir(settings.data_dir)
        self._exit.callback(data_lock.release)
        _learn_plugins()
        curated.user_list(settings.data_dir)  # what is wrong with it is said now
        http_socket = listen(settings.host, settings.port, "port")
        self._exit.callback(http_socket.close)
        self.http_port = http_socket.getsockname()[1]
        # gRPC binds by itself, with a less helpful error and only after Triton has started.
        check_free(settings.host, settings.grpc_port, "grpc_port")
        server = self._triton()
        await server.begin()  # it comes up while the registry is looked through, and loads nothing
        bus = EventBus()
        db = open_db(settings.database)
        self._exit.callback(db.close)
        self._watch_database(db)
        bus.subscribe(DomainEvent, lambda event: _keep(db, event))
        store = ModelStore(db, bus)
        repository = ModelRepository(settings.model_repository)
        installer = Installer(store, repository, settings)
        installer.recover()
        await server.start()
        client = TritonClient(server.endpoints)
        self._exit.push_async_callback(client.close)
        self._exit.push_async_callback(installer.close)
        self._lifecycle = lifecycle = Lifecycle(settings, store, repository, server, client, bus)
        scheduler, monitor = lifecycle.scheduler, lifecycle.monitor
        await lifecycle.start()
        self._exit.push_async_callback(lifecycle.stop)
        installer.reload = self._reloader(store, scheduler)
        metrics = Metrics(bus, scheduler)
        locking = Locking(store, LockStore(db, bus), settings.data_dir.absolute() / "downloads")
        lock_operations = self._lock_operations(locking, store, installer, scheduler)
        inference = InferenceService(
            store, scheduler, client, bus, settings=settings, suspect=monitor.suspect
        )
        self._exit.callback(inference.close)
        self.services = Services(
            settings=settings,
            store=store,
            installer=installer,
            scheduler=scheduler,
            inference=inference,
            server=server,
            client=client,
            bus=bus,
            locking=locking,
            lock_operations=lock_operations,
            render_metrics=metrics.render,
            started_at=self.started_at,
            version=package_version(),
            suspect=monitor.suspect,
            check_database=lambda: check(db.conn),
        )
        await self._start_gateway(http_socket)
        installer.resume()
        lock_operations.resume()  # after those: it joins them
        self._write_address()
        self._spawn_preload()

    def _watch_database(self, db: Database) -> None:
        watching = asyncio.create_task(keep_watch(db.conn), name="database")

        async def end() -> None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

        self._exit.push_async_callback(end)

    def _triton(self) -> TritonServer:
        server: TritonServer
        if self.settings.triton_grpc_url:
            server = ExternalTriton(
                self.settings.triton_grpc_url,
                self.settings.triton_http_url,
                self.settings.triton_metrics_url,
                secret=self.settings.control_header,
            )
        else:
            server = EmbeddedTriton(
                self.settings.model_repository,
                self.settings.data_dir / "triton",
                hang_timeout=self.settings.triton_hang_timeout,
            )
        self._server = server
        self._exit.push_async_callback(server.stop)
        return server

    def _reloader(
        self, store: ModelStore, scheduler: Scheduler
    ) -> Callable[[ModelVersion], Awaitable[None]]:
        async def reload(version: ModelVersion) -> None:
            timeout = self.settings.load_timeout
            await reload_version(store, scheduler, version, load_timeout=timeout)

        return reload

    def _lock_operations(
        self, locking: Locking, store: ModelStore, installer: Installer, scheduler: Scheduler
    ) -> LockOperations:
        async def remove(model_id: str) -> None:
            await remove_model(store, installer, scheduler, model_id, force=True)

        async def switch(model_id: str, version: str) -> None:
            timeout = self.settings.load_timeout
            await use_version(store, scheduler, model_id, version, load_timeout=timeout)

        operations = LockOperations(
            Machine(
                locking=locking,
                store=store,
                installer=installer,
                downloads=self.settings.data_dir.absolute() / "downloads",
                repository=self.settings.model_repository.absolute(),
                remove=remove,
                switch=switch,
            )
        )
        self._exit.push_async_callback(operations.close)
        return operations

    async def _start_gateway(self, http_socket: socket.socket) -> None:
        grpc_gateway = GrpcGateway(self.services, self.settings.host, self.settings.grpc_port)
        self.grpc_port = await grpc_gateway.start()
        self._exit.push_async_callback(grpc_gateway.stop, CUT_OFF)
        http_gateway = create_app(self.services)
        self._exit.push_async_callback(http_gateway.close)
        draining = Draining(http_gateway)
        http_server = _HttpServer(
            uvicorn.Config(
                draining,
                http=speaking(http_gateway.direct, draining),
                ws="none",
                proxy_headers=False,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=CUT_OFF,
                # The default of 5 s closes connections that a client is just about to use again.
                timeout_keep_alive=75,
            )
        )
        serving = asyncio.create_task(http_server.serve(sockets=[http_socket]), name="http")
        self._exit.push_async_callback(_stop_http, http_server, serving)
        self._exit.push_async_callback(self._drain, draining, grpc_gateway)
        while not http_server.started:
            await asyncio.sleep(0.005)
            if serving.done():
                await serving

    async def _drain(self, http: Draining, grpc_gateway: GrpcGateway) -> None:
        """Take nothing new, and wait for what runs, on both ports."""
        http.begin()
        # Streams of events have no end of their own to wait for.
        self.services.installer.operations.stop_watching()
        self.services.store.event_log.close()
        patience = self.settings.drain_timeout
        done, _ = await asyncio.gather(http.idle(patience), grpc_gateway.stop(patience))
        if not done:
            log.warning("requests are cut off", running=http.running, after_s=patience)

    def _write_address(self) -> None:
        """`server.json`: where this server listens, for tools that let it choose its ports."""
        path = self.settings.data_dir / "server.json"
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        facts = {
            "pid": os.getpid(),
            "url": f"http://{host}:{self.http_port}",
            "grpc_url": f"{host}:{self.grpc_port}",
        }
        staged = path.with_suffix(".tmp")
        staged.write_bytes(msgspec.json.encode(facts))
        staged.replace(path)
        self._exit.callback(path.unlink, missing_ok=True)
        seconds = round(time.monotonic() - self.started_at, 2)
        log.info("ready", seconds=seconds, url=facts["url"], grpc_url=facts["grpc_url"])

    def _spawn_preload(self) -> None:
        task = asyncio.create_task(self._preload(), name="preload")

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._exit.push_async_callback(end)

    async def _preload(self) -> None:
        for name in dict.fromkeys((*self.settings.preload, *self.services.store.preloaded())):
            deadline = asyncio.get_running_loop().time() + self.settings.load_timeout
            try:
                servable = self.services.store.servable(name, None)
                async with self.services.scheduler.lease(servable, deadline=deadline):
                    log.info("preloaded", model_id=servable.model_id)
            except ModelMoraError as error:  # it must not stop the service (domain §3.8)
                log.warning("preload failed", model=name, reason=error.message)
        self._lifecycle.keeping.bring_all()


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` below has its own, for all parts."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _stop_http(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving


def _learn_plugins() -> None:
    for plugin in plugins.learn():
        if plugin.fault is not None and not plugin.own:
            log.warning("plugin not used", kind=plugin.kind, name=plugin.name, why=plugin.fault)


def _keep(db: Database, event: DomainEvent) -> None:
    """Store events of the lifecycle; the registry's are stored with their own changes."""
    if event.stored and event.aggregate_type == LIFECYCLE:
        # what is wrong with the file was told when it was found
        with contextlib.suppress(DatabaseUnusable), transaction(db):
            append_event(db, event)


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the exit code for the shell.

    Raises:
        StartupError: the service could not start.
    """
    configure_logging(settings.log_level, settings.log_format)
    import uvloop

    uvloop.install()
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    application = Application(settings)
    stop = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals > 1:  # the second one ends it
            application.abort()
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(application.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    await starting
    gc.freeze()  # what a start made stays: no need to look through it again and again
    gc.enable()
    await stopping
    await application.stop()
    return 0
