"""The REST API on Litestar. Handlers parse, make one call and render."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from controlplane.gateway.http import HttpGateway
from controlplane.gateway.rest import (
    cache,
    catalog,
    database,
    docs,
    events,
    infer,
    lifecycle,
    lifecycle_views,
    locks,
    memory,
    models,
    operations,
    plugins,
    system,
    tuning,
    versions,
)
from controlplane.gateway.rest.failures import EXCEPTION_HANDLERS
from controlplane.gateway.rest.requests import JsonRequest
from controlplane.gateway.v2_http import V2Http

if TYPE_CHECKING:
    from controlplane.gateway.asgi import App
    from controlplane.gateway.services import Services

API_ROUTES = [
    *models.ROUTES,
    *versions.ROUTES,
    tuning.tune_model,
    *operations.ROUTES,
    *catalog.ROUTES,
    *lifecycle.ROUTES,
    *lifecycle_views.ROUTES,
    *memory.ROUTES,
    *infer.ROUTES,
    *locks.ROUTES,
    *events.ROUTES,
    *database.ROUTES,
    *cache.ROUTES,
    *plugins.ROUTES,
    *system.ROUTES,
]


def create_app(services: Services) -> HttpGateway:
    """The ASGI application of the HTTP port: REST, docs, metrics, and Triton's protocol at /v2.

    Its `close` must be awaited at the end, unless the server runs the lifespan protocol.
    """
    v2 = V2Http(services)

    rest = Litestar(
        [*API_ROUTES, *docs.ROUTES],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        request_class=JsonRequest,
        request_max_body_size=services.settings.max_request_bytes,
        state=State({"max_request_bytes": services.settings.max_request_bytes}),
        on_shutdown=[v2.close],
        # The document is served by docs.py, logs are written by structlog.
        openapi_config=None,
        logging_config=None,
    )
    return HttpGateway(cast("App", rest), v2)
