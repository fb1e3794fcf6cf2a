"""A Triton server that somebody else runs: watched, never started or stopped."""

from __future__ import annotations

import asyncio
import re

import structlog

from controlplane.errors import SettingsError
from controlplane.triton.client import TritonClient
from controlplane.triton.failures import TritonError, TritonTimeout, TritonUnavailable
from controlplane.triton.server import (
    GRPC_HEADER_PREFIX,
    Callback,
    Endpoints,
    ServerState,
    call_all,
)

_log = structlog.get_logger(__name__)

_ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?"
)
# Triton's own default for the port beside the gRPC one.
_HTTP_PORT = 8000
POLL_SECONDS = 1.0
# Two misses: one slow answer of a busy server is no reason to declare its models gone.
MISSES_UNTIL_LOST = 2


class ExternalTriton:
    """Watches a server at the addresses given; implements `TritonServer`."""

    def __init__(
        self,
        grpc_url: str,
        http_url: str | None = None,
        metrics_url: str | None = None,
        *,
        secret: tuple[str, str] | None = None,
        start_timeout: float = 5.0,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """
        Args:
            grpc_url: `host:port` or `grpc://host:port`.
            http_url: `host:port` or `http://host:port`; default: the same host, port 8000.
            metrics_url: address of the Prometheus page; default: none.
            secret: header name and value that open its restricted APIs, if it has such.
            start_timeout: seconds that `start` waits for it before it goes on without.
            poll_seconds: time between two looks.

        Raises:
            SettingsError: an address cannot be read.
        """
        host, port = _host_and_port("MODELMORA_TRITON_GRPC_URL", grpc_url, "grpc")
        if http_url is not None:
            http = _host_and_port("MODELMORA_TRITON_HTTP_URL", http_url, "http")
        else:
            http = (host, _HTTP_PORT)
        self._endpoints = Endpoints(
            grpc_url=f"{host}:{port}",
            http_url=f"http://{http[0]}:{http[1]}",
            metrics_url=metrics_url,
            grpc_metadata=((GRPC_HEADER_PREFIX + secret[0], secret[1]),) if secret else (),
            http_headers={secret[0]: secret[1]} if secret else {},
        )
        self._start_timeout = start_timeout
        self._poll_seconds = poll_seconds
        self._state: ServerState = "stopped"
        self._client: TritonClient | None = None
        self._watch: asyncio.Task[None] | None = None
        self._known: set[str] = set()
        self.on_lost: list[Callback] = []
        self.on_restored: list[Callback] = []

    @property
    def endpoints(self) -> Endpoints:
        return self._endpoints

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def pid(self) -> int | None:
        """None: the process is somebody else's."""
        return None

    async def begin(self) -> None:
        """Nothing: it is somebody else's to start."""

    async def start(self) -> None:
        """Return when the server answers, or has not in time: it is `lost` then, and watched."""
        if self._watch is not None:
            return
        self._state = "starting"
        self._client = TritonClient(self._endpoints)
        deadline = asyncio.get_running_loop().time() + self._start_timeout
        while not (live := await self._client.live(timeout=self._poll_seconds)):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.1)
        if live:
            self._known = _known(await _states(self._client))
            self._state = "ready"
        else:
            self._state = "lost"
            _log.error(
                "no Triton server answers: requests wait for it; start it, or correct "
                "MODELMORA_TRITON_GRPC_URL, or unset it to use the embedded server",
                grpc_url=self._endpoints.grpc_url,
            )
        self._watch = asyncio.create_task(self._supervise(self._client), name="triton-watch")

    async def stop(self) -> None:
        """Stop watching; the server goes on."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._state = "stopped"

    def kill(self) -> bool:
        """False: the server is not ours to end."""
        return False

    def abort(self) -> None:
        """Nothing: the server goes on."""

    def stub_pids(self, triton_name: str, triton_version: int) -> list[int]:  # noqa: ARG002
        """Empty: its processes may run on another machine."""
        return []

    def stubs(self) -> dict[tuple[str, int], list[int]]:
        """Empty, likewise."""
        return {}

    def kill_stubs(self, triton_name: str, triton_version: int) -> int:  # noqa: ARG002
        """0: its processes are out of reach."""
        return 0

    async def _supervise(self, client: TritonClient) -> None:
        misses = 0
        known = self._known
        while True:
            await asyncio.sleep(self._poll_seconds)
            states = await _states(client)
            misses = misses + 1 if states is None else 0
            if states is None:
                if misses >= MISSES_UNTIL_LOST and self._state == "ready":
                    self._mark_lost("Triton does not answer")
                continue
            # Unloaded models keep a state; only a new server process has none for them. It may
            # be back between two looks.
            if self._state == "ready" and any(not states.get(name, "?") for name in known):
                self._mark_lost("Triton was restarted")
            if self._state == "lost":
                self._mark_restored()
            known = _known(states)

    def _mark_lost(self, why: str) -> None:
        self._state = "lost"
        _log.error(why, grpc_url=self._endpoints.grpc_url)
        call_all(self.on_lost)

    def _mark_restored(self) -> None:
        self._state = "ready"
        _log.info("Triton is back", grpc_url=self._endpoints.grpc_url)
        call_all(self.on_restored)


async def _states(client: TritonClient) -> dict[str, str] | None:
    """State of each model in the index; None when the server does not answer."""
    try:
        return {entry.name: entry.state for entry in await client.index()}
    except (TritonUnavailable, TritonTimeout):
        return None
    except TritonError:  # it answers, but keeps its index from us
        return {}


def _known(states: dict[str, str] | None) -> set[str]:
    """Models that the server has had loaded since it was started."""
    return {name for name, state in (states or {}).items() if state}


def _host_and_port(setting: str, url: str, scheme: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(url.strip())
    if match is None or match["scheme"] not in (None, scheme) or not 0 < int(match["port"]) < 65536:
        raise SettingsError(setting, f"must be HOST:PORT or {scheme}://HOST:PORT (got {url!r})")
    return match["host"], int(match["port"])
