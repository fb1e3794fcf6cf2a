"""The embedded Triton server: a child process, started, watched, restarted and swept up after."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from controlplane.errors import StartupError
from controlplane.triton import processes
from controlplane.triton.client import TritonClient
from controlplane.triton.installation import (
    Host,
    Installation,
    assemble_backends,
    find_installation,
    link_package,
    server_environment,
)
from controlplane.triton.server import (
    GRPC_HEADER_PREFIX,
    Callback,
    Endpoints,
    ServerState,
    call_all,
)
from controlplane.triton.server_process import (
    CONTROL_HEADER,
    HOST,
    ServerOptions,
    ServerProcess,
)
from controlplane.triton.watching import watch_until_dead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_log = structlog.get_logger(__name__)

_PORT_ATTEMPTS = 5
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0  # seconds before a restart, doubling
STABLE_AFTER = 60.0  # a server that ran so long starts again with the first backoff
ORPHAN_GRACE = 2.0  # seconds; nobody waits for an answer of theirs any more


class EmbeddedTriton:
    """Runs the wheel's `tritonserver` on free loopback ports; implements `TritonServer`.

    One instance per `state_dir` at a time (the caller holds a lock on it): `start` ends any
    other server that was started with the same one.
    """

    def __init__(
        self,
        model_repository: Path,
        state_dir: Path,
        *,
        package: Path | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float = 8.0,
        hang_timeout: float = 30.0,
        host: Host | None = None,
    ) -> None:
        """
        Args:
            model_repository: Triton's repository; created where missing.
            state_dir: for the backend folder and the instance's name, which finds its processes.
            package: the `backends` package that models import; default: ours.
            start_timeout: seconds until the server must answer.
            stop_timeout: seconds for a graceful stop before it is killed.
            hang_timeout: seconds without any sign of life after which it is killed.
            host: the machine's facts; default: this machine's.
        """
        self._repository = model_repository.absolute()
        self._state_dir = state_dir.absolute()
        self._package = package or Path(__file__).resolve().parents[2] / "backends"
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._hang_timeout = hang_timeout
        self._host = host
        self._state: ServerState = "stopped"
        self._process: ServerProcess | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ports: tuple[int, int, int] | None = None
        self._secret = ""
        self._prefix = ""
        self._backends = self._state_dir / "triton_backends"
        self._stub_home = self._state_dir / "stub_home"
        self._asked_to_die = False
        self.on_lost: list[Callback] = []
        self.on_restored: list[Callback] = []

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def shared_memory_prefix(self) -> str:
        """What the names of the instance's files in /dev/shm begin with; empty before `start`."""
        return self._prefix

    @property
    def endpoints(self) -> Endpoints:
        """Valid after `start`; the ports change only when others took them during a restart."""
        if self._ports is None:
            raise StartupError("The embedded Triton server was not started.")
        return _endpoints(self._ports, self._secret)

    async def begin(self) -> None:
        """End leftovers of an earlier life and start the process, without waiting for an answer.

        Nothing is loaded into it: that is asked for, by whoever has waited for `start`.

        Raises:
            StartupError: the machine cannot run it; with the way out.
        """
        if self._process is not None:
            return
        self._state = "starting"
        self._secret = secrets.token_urlsafe(32)
        async with self._whole_or_gone():
            await self._prepare()
            await self._spawn()

    async def start(self) -> None:
        """Begin, unless that was done, and return when the server answers.

        Raises:
            StartupError: the machine cannot run it, or it does not start; with the way out.
        """
        if self._watch is not None:
            return
        await self.begin()
        async with self._whole_or_gone():
            await self._launch()
        self._state = "ready"
        self._watch = asyncio.create_task(self._supervise(), name="triton-supervisor")

    async def stop(self) -> None:
        """Stop the server; leaves no process and no shared memory behind."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        await self._tear_down()
        self._state = "stopped"

    def abort(self) -> None:
        """Kill the server and its stubs, clear their memory files: this process is about to end."""
        if self._prefix:
            processes.kill_all(processes.find_marked(self._prefix))
            processes.sweep_shared_memory(self._prefix)

    def stub_pids(self, triton_name: str, triton_version: int) -> list[int]:
        """Processes that run that model version."""
        if self.pid is None:
            return []
        found = processes.stubs_of(self.pid, triton_name, triton_version)
        return [stub.pid for stub in found]

    def stubs(self) -> dict[tuple[str, int], list[int]]:
        """All processes of models, by name and version."""
        found = processes.stubs(self.pid) if self.pid is not None else {}
        return {key: [stub.pid for stub in mine] for key, mine in found.items()}

    def kill_stubs(self, triton_name: str, triton_version: int) -> int:
        """Kill that version's processes; a load that hangs in one of them fails within seconds."""
        if self.pid is None:
            return 0
        return processes.kill_all(processes.stubs_of(self.pid, triton_name, triton_version))

    def kill(self) -> bool:
        """Kill a server that is beyond help; another one is started at once."""
        if self._process is None or not self._process.kill():
            return False
        self._asked_to_die = True
        return True

    # -- one life of the process -----------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _whole_or_gone(self) -> AsyncIterator[None]:
        """A start that fails, or is given up, leaves no process and no shared memory."""
        try:
            yield
        except BaseException:
            await self._tear_down()
            self._state = "stopped"
            raise

    async def _prepare(self) -> None:
        self._installation = find_installation(self._host)
        try:
            self._make_folders(self._installation)
        except OSError as error:
            raise StartupError(
                f"{error.filename or self._state_dir} cannot be written: {error.strerror}. "
                "Choose another folder with MODELMORA_DATA_DIR and MODELMORA_MODEL_REPOSITORY."
            ) from error
        orphans = await processes.end_marked(self._prefix, grace=ORPHAN_GRACE)
        if orphans:
            _log.warning("ended leftovers of an earlier server", processes=orphans)
        processes.sweep_shared_memory(self._prefix)

    def _make_folders(self, installation: Installation) -> None:
        self._repository.mkdir(parents=True, exist_ok=True)
        self._state_dir.mkdir(parents=True, exist_ok=True)
        assemble_backends(installation, self._backends)
        link_package(self._package, self._stub_home)
        self._prefix = processes.instance_prefix(self._state_dir)

    async def _launch(self) -> None:
        """Return when the server answers; `begin` may have started its process."""
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            process = self._process or await self._spawn()
            if await self._answers(process):
                return
            await self._tear_down()  # which reads its output to the end
            taken = any("in use" in line.lower() for line in process.last_words)
            if not taken or attempt == _PORT_ATTEMPTS:
                raise StartupError(_failure(process, self._start_timeout))
            self._ports = None  # taken by somebody else since we looked

    async def _spawn(self) -> ServerProcess:
        self._ports = self._ports or _free_ports()
        self._process = await ServerProcess.spawn(
            self._options(self._ports).command(),
            cwd=self._stub_home,  # what the stubs import from first
            environment=server_environment(self._installation),
        )
        return self._process

    def _options(self, ports: tuple[int, int, int]) -> ServerOptions:
        return ServerOptions(
            server=self._installation.server,
            repository=self._repository,
            backends=self._backends,
            prefix=self._prefix,
            ports=ports,
            secret=self._secret,
            exit_timeout=max(1, int(self._stop_timeout) - 2),
        )

    async def _answers(self, process: ServerProcess) -> bool:
        """True when the server is live, False when it ended or the time is over."""
        deadline = asyncio.get_running_loop().time() + self._start_timeout
        client = TritonClient(self.endpoints)
        try:
            while process.pid is not None and asyncio.get_running_loop().time() < deadline:
                if process.listens and await client.live(timeout=1.0):
                    return True
                await asyncio.sleep(0.02)
        finally:
            await client.close()
        return False

    async def _tear_down(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None:
                await process.end(self._stop_timeout)
        finally:
            if self._prefix:
                # Stubs can outlive a server that was killed, with their memory.
                processes.kill_all(left := processes.find_marked(self._prefix))
                await processes.wait_gone(left, 5.0)
                processes.sweep_shared_memory(self._prefix)
            if process is not None:
                process.close()

    # -- supervision -----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF
        while True:
            started = loop.time()
            assert self._process is not None
            code = await watch_until_dead(
                self._process,
                self.endpoints,
                hang_timeout=self._hang_timeout,
                stop_timeout=self._stop_timeout,
                on_told=self._mark_lost,  # it refuses requests from now on: they wait
            )
            if loop.time() - started >= STABLE_AFTER:
                backoff = FIRST_BACKOFF
            delay = 0.0 if self._asked_to_die else backoff
            self._asked_to_die = False
            _log.error("Triton died", exit_code=code, restart_in_s=delay)
            self._mark_lost()
            await self._tear_down()
            backoff = await self._restart(delay, backoff)
            self._state = "ready"
            _log.info("Triton is back", pid=self.pid)
            call_all(self.on_restored)

    def _mark_lost(self) -> None:
        if self._state == "ready":
            self._state = "lost"
            call_all(self.on_lost)

    async def _restart(self, delay: float, backoff: float) -> float:
        """Try until the server answers; returns the backoff for its next death."""
        while True:
            await asyncio.sleep(delay)
            delay = backoff = min(backoff * 2, MAX_BACKOFF)
            self._state = "starting"
            try:
                await self._launch()
            except (StartupError, OSError) as error:
                self._state = "lost"
                _log.error("Triton did not come back", error=str(error), retry_in_s=backoff)
            else:
                return backoff


def _failure(process: ServerProcess, timeout: float) -> str:
    said = " | ".join(process.last_words) or "it said nothing"
    return f"Triton ended, or did not answer within {timeout:g} s, when it was started: {said}"


@functools.lru_cache(maxsize=1)
def _endpoints(ports: tuple[int, int, int], secret: str) -> Endpoints:
    """Remembered, because every request of the relay asks where the server listens now."""
    http, grpc, metrics = ports
    return Endpoints(
        grpc_url=f"{HOST}:{grpc}",
        http_url=f"http://{HOST}:{http}",
        metrics_url=f"http://{HOST}:{metrics}/metrics",
        grpc_metadata=((GRPC_HEADER_PREFIX + CONTROL_HEADER, secret),),
        http_headers={CONTROL_HEADER: secret},
    )


def _free_ports() -> tuple[int, int, int]:
    with contextlib.ExitStack() as stack:
        # All three open at once, or the kernel may give the same one twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind((HOST, 0))
        http, grpc, metrics = (each.getsockname()[1] for each in sockets)
    return http, grpc, metrics
