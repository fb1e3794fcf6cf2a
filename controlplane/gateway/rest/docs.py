"""The OpenAPI document and a page to read it with, which works without the internet."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Response, get
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Tag
from litestar.response import Redirect

from controlplane.gateway.rest.task_schemas import describe_tasks
from controlplane.gateway.services import GivenServices

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

_PATH_EXAMPLES = {"org": "sentence-transformers", "repo": "all-MiniLM-L6-v2"}
_PAGE = Path(__file__).with_name("docs.html")
# The page is one file with its script and style in it, and talks to this server only.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_DESCRIPTION = """\
Registers HuggingFace models, converts them, and serves them on NVIDIA Triton.

Inference clients of Triton (HTTP and gRPC, KServe v2) can be pointed here as they are; the
first request for a model loads it. Every error has one form, `{"error": {"code", "message",
"details", "trace_id"}}`, and every response carries `X-Trace-Id`, by which the log can be searched.
"""


@get("/openapi.json", include_in_schema=False)
async def openapi(services: GivenServices) -> Response[bytes]:
    """The OpenAPI 3.1 document."""
    # In a thread: the first time it takes some 0.4 s, and inference goes on meanwhile.
    document = await asyncio.to_thread(openapi_document, services.version)
    return Response(document, media_type="application/vnd.oai.openapi+json")


@get(["/docs", "/"], include_in_schema=False)
async def docs() -> Response[bytes]:
    """The page that shows the document and tries operations."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(_page(), media_type="text/html", headers=headers)


@get("/redoc", include_in_schema=False)
async def redoc() -> Redirect:
    """Where other tools would put their page."""
    return Redirect("/docs")


ROUTES = [openapi, docs, redoc]


@lru_cache(maxsize=2)
def openapi_document(version: str) -> bytes:
    """The OpenAPI document as JSON, made once per version.

    It is built from an application of its own: Litestar would otherwise serve it along with
    pages that load their scripts from the internet, and a 404 page outside of our envelope.
    """
    from controlplane.gateway.rest import API_ROUTES  # it imports this module

    routes: list[HTTPRouteHandler] = list(API_ROUTES)
    config = OpenAPIConfig(
        title="ModelMora",
        version=version,
        description=_DESCRIPTION,
        use_handler_docstrings=True,
        tags=[
            Tag("Models", "The catalog: what may be served."),
            Tag("Operations", "Installations, syncs and verifications in the background."),
            Tag("Catalog file", "The models that a deployment lists in its modelmora.yaml."),
            Tag("Lifecycle", "What is in memory."),
            Tag("Locks", "Which bytes a machine is to serve, and making it so."),
            Tag("Inference", "Running models."),
            Tag("Events", "What has happened, and what happens."),
            Tag("System", "The service itself."),
            Tag("Health", "For load balancers and people."),
        ],
        render_plugins=(),
    )
    # Without it the routes' `services` would be described as a query parameter.
    dependencies = {"services": Provide(lambda: None, sync_to_thread=False)}
    described = Litestar(
        routes, dependencies=dependencies, openapi_config=config, logging_config=None
    )
    document = described.openapi_schema.to_schema()
    _polish(document)
    describe_tasks(document)
    return msgspec.json.encode(document)


def _polish(node: Any) -> None:
    """Say plainly what Litestar says in a roundabout way, and give path parameters examples."""
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            _polish(child)
    if not isinstance(node, dict):
        return
    if len(node.get("oneOf", ())) == 1:  # a field that may be left out
        node.update(node.pop("oneOf")[0])
    if node.get("in") == "path" and node.get("name") in _PATH_EXAMPLES:
        node["example"] = _PATH_EXAMPLES[node["name"]]
    body = node.get("requestBody")
    if body and {"type": "null"} in body["content"]["application/json"]["schema"].get("oneOf", ()):
        body["required"] = False


@lru_cache(maxsize=1)
def _page() -> bytes:
    return _PAGE.read_bytes()
