"""What the gateway is given: the objects behind every route, put together in `app.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from litestar.di import NamedDependency
from litestar.params import SkipValidation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controlplane.events import EventBus
    from controlplane.inference.infer import InferenceService
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.install import Installer
    from controlplane.registry.lock_operations import LockOperations
    from controlplane.registry.locking import Locking
    from controlplane.registry.model import Servable
    from controlplane.registry.store import ModelStore
    from controlplane.settings import Settings
    from controlplane.triton.client import TritonClient
    from controlplane.triton.server import TritonServer


@dataclass(frozen=True)
class Services:
    """The use cases and state that routes call.

    Attributes:
        render_metrics: the Prometheus exposition and its content type.
        check_database: raises when the database does not answer.
        suspect: told of a model whose answer was a failure of the server.
        started_at: `time.monotonic()` of the service's start.
        version: ModelMora's own version.
    """

    settings: Settings
    store: ModelStore
    installer: Installer
    scheduler: Scheduler
    inference: InferenceService
    server: TritonServer
    client: TritonClient
    bus: EventBus
    locking: Locking
    lock_operations: LockOperations
    render_metrics: Callable[[], Awaitable[tuple[bytes, str]]]
    started_at: float
    version: str
    suspect: Callable[[Servable], None] = lambda _: None
    check_database: Callable[[], object] = lambda: None


# As a parameter of a route: handed over as it is, not taken apart and checked as input is.
GivenServices: TypeAlias = NamedDependency[SkipValidation[Services]]
