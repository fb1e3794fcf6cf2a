"""The route that lists converters, backends and engines."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec
from litestar import get
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import present
from controlplane.registry.names import servable_tasks
from controlplane.registry.plugins import Plugin, learn


class PluginBody(msgspec.Struct, kw_only=True):
    kind: Literal["converter", "backend", "engine"]
    name: Annotated[str, Meta(description="A converter's is the task that it serves.")]
    target: Annotated[str, Meta(description="MODULE:ATTRIBUTE.")]
    distribution: str
    version: str
    ok: bool
    reason: Annotated[str | UnsetType, Meta(description="Why it is not used.")] = UNSET

    @classmethod
    def of(cls, plugin: Plugin) -> PluginBody:
        return cls(
            kind=plugin.kind,  # type: ignore[arg-type]
            name=plugin.name,
            target=plugin.target,
            distribution=plugin.distribution,
            version=plugin.version,
            ok=plugin.fault is None,
            reason=present(plugin.fault),
        )


class PluginsResponse(msgspec.Struct, kw_only=True):
    """All that is installed in the server's environment at this moment."""

    data: list[PluginBody]
    tasks: Annotated[list[str], Meta(description="Tasks that can be registered.")]


@get(
    "/api/v1/plugins",
    operation_id="listPlugins",
    summary="Converters, backends and engines",
    tags=["System"],
)
async def list_plugins() -> PluginsResponse:
    """What can convert and serve models: ModelMora's own, and what plugins have brought.

    The environment is looked through anew: the tasks of plugins that were installed while the
    server runs can be registered from then on.
    """
    found = await asyncio.to_thread(learn)
    return PluginsResponse(data=[PluginBody.of(one) for one in found], tasks=servable_tasks())


ROUTES = [list_plugins]
