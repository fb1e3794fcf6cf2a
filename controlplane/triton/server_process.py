"""One life of the `tritonserver` process: how it is started, heard, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from controlplane.triton.server_log import LogPipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
CONTROL_HEADER = "modelmora-control"
# Everything that changes the server or reads and writes memory; health, metadata, configuration,
# statistics and inference stay open.
_RESTRICTED = "model-repository,shared-memory,logging,trace"
_LAUNCHER = Path(__file__).with_name("launch.py")
_SERVICES = 3  # gRPC, HTTP, metrics
IDLE_GRACE = 3.0  # seconds for a stopping server without requests: it looks once a second


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between two servers.

    Attributes:
        server: the binary.
        repository, backends: absolute folders.
        prefix: of the names of shared-memory files; marks the command line as well.
        ports: HTTP, gRPC, metrics.
        secret: value of the header that opens the restricted APIs.
        exit_timeout: seconds that a stopping server waits for running requests.
    """

    server: Path
    repository: Path
    backends: Path
    prefix: str
    ports: tuple[int, int, int]
    secret: str
    exit_timeout: int

    def command(self) -> list[str]:
        """The server's command line."""
        http, grpc, metrics = self.ports
        # Visible in the process list, as Triton takes it no other way: it keeps out clients of
        # the inference ports, not other users of this machine who may read our processes.
        restricted = f"{_RESTRICTED}:{CONTROL_HEADER}={self.secret}"
        return [
            str(self.server),
            f"--model-repository={self.repository}",
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={self.prefix}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            # Our configurations are complete; completing them would start each model twice.
            "--disable-auto-complete-config",
            f"--http-address={HOST}",
            f"--http-port={http}",
            f"--grpc-address={HOST}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            f"--http-restricted-api={restricted}",
            f"--grpc-restricted-protocol={restricted}",
            f"--exit-timeout-secs={self.exit_timeout}",
        ]


class ServerProcess:
    """A running (or ended) server whose output goes to our log."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: LogPipe) -> None:
        self._process = process
        self._pipe = pipe

    @classmethod
    async def spawn(
        cls, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]
    ) -> ServerProcess:
        """Start `command` so that it ends with this thread of ours."""
        pipe = LogPipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipe.write_fd,
                stderr=pipe.write_fd,
                cwd=cwd,
                env=environment,
                # A Ctrl-C in the terminal is for the control plane, which then stops the server.
                start_new_session=True,
            )
        except BaseException:
            pipe.close()
            raise
        pipe.close_write_end()
        return cls(process, pipe)

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process.returncode is None else None

    @property
    def listens(self) -> bool:
        """Whether its own log has named all three ports.

        At a port that somebody else took, that somebody would answer a question for its health.
        """
        return len(self._pipe.services) == _SERVICES

    @property
    def last_words(self) -> list[str]:
        """The last lines of its output."""
        return list(self._pipe.recent)[-5:]

    async def told_to_stop(self) -> None:
        """Return when it has been told to stop, by whomever: it takes no new requests then."""
        await self._pipe.ending.wait()

    async def wait(self) -> int:
        """The exit code, when it has ended; negative for a signal."""
        return await self._process.wait()

    def kill(self) -> bool:
        """SIGKILL; False when it has ended already."""
        if self.pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return True

    async def end(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL after `timeout` seconds."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            if not await self._ends_within(timeout):
                _log.warning("Triton did not stop in time and is killed", pid=self._process.pid)
                self.kill()
        await self._process.wait()

    async def _ends_within(self, timeout: float) -> bool:
        """Whether it ends in that time, or soon after it has become idle.

        Once no request runs there is nothing left to wait for: a server that then does not end
        has a model whose load hangs or whose process is dead, and would use up the whole time.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.ensure_future(self._process.wait())
        deadline = loop.time() + timeout
        while not (await asyncio.wait({ended}, timeout=0.05))[0]:
            if self._pipe.is_idle:
                deadline = min(deadline, loop.time() + IDLE_GRACE)
                self._pipe.is_idle = False
            if loop.time() >= deadline:
                break
        ended.cancel()
        return self.pid is None

    def close(self) -> None:
        """Read what is left of its output; to be called when its stubs are gone too."""
        self._pipe.close()
