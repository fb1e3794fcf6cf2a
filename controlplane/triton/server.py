"""What the rest of the control plane knows of a Triton server, embedded or external."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec
import structlog

_log = structlog.get_logger(__name__)

# What Triton puts before the name of a restricted API's header when it comes as gRPC metadata.
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"

ServerState = Literal["stopped", "starting", "ready", "lost"]
Callback = Callable[[], None]


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """Where a Triton server listens and what opens its restricted APIs.

    Attributes:
        grpc_url: `host:port`, without a scheme.
        http_url: `http://host:port`.
        metrics_url: address of the Prometheus page, None where the server has none.
        grpc_metadata, http_headers: the secret of the restricted APIs, sent with every control
            call; empty for an external Triton without one. Never to be logged or handed on.
    """

    grpc_url: str
    http_url: str
    metrics_url: str | None = None
    grpc_metadata: tuple[tuple[str, str], ...] = ()
    http_headers: dict[str, str] = {}

    def __repr__(self) -> str:  # logs and tracebacks must not carry the secret
        return f"Endpoints(grpc_url={self.grpc_url!r}, http_url={self.http_url!r})"


class TritonServer(Protocol):
    """A Triton server that is being watched. Callbacks run on the event loop that called `start`.

    Attributes:
        on_lost: called when the server died or stopped answering; its models are gone.
        on_restored: called when it answers again; `endpoints` may have changed by then.
    """

    on_lost: list[Callback]
    on_restored: list[Callback]

    @property
    def endpoints(self) -> Endpoints: ...

    @property
    def state(self) -> ServerState: ...

    @property
    def pid(self) -> int | None:
        """Process id of the server, None while it is down or runs elsewhere."""
        ...

    async def begin(self) -> None:
        """Have the server come up while the caller does something else; `start` waits for it.

        Raises:
            StartupError: saying what to do; nothing is left of it.
        """
        ...

    async def start(self) -> None:
        """Return when the server answers; one that is somebody else's may be `lost` still.

        Raises:
            StartupError: saying what to do.
        """
        ...

    async def stop(self) -> None:
        """Return when nothing of it is left; harmless when it was never started."""
        ...

    def abort(self) -> None:
        """End what is ours of it at once, without waiting: this process is about to end."""
        ...

    def stub_pids(self, triton_name: str, triton_version: int) -> list[int]:
        """Processes that run that model version; empty where they cannot be seen."""
        ...

    def stubs(self) -> dict[tuple[str, int], list[int]]:
        """All processes of models, by name and version; empty where they cannot be seen."""
        ...

    def kill_stubs(self, triton_name: str, triton_version: int) -> int:
        """Kill that version's processes and say how many: the cure for a load that hangs."""
        ...

    def kill(self) -> bool:
        """End a server that hangs beyond help; it is lost and restored as if it had died.

        False where there is none, or it is not ours to end.
        """
        ...


def call_all(callbacks: list[Callback]) -> None:
    """Call each; the failure of one is logged and does not keep the others from being called."""
    for callback in callbacks:
        try:
            callback()
        except Exception:  # noqa: BLE001 - it must not end the supervision
            _log.exception("a listener of the Triton server failed")
