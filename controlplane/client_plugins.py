"""The client's operation on converters, backends and engines; see `client_operations`."""

from __future__ import annotations

import msgspec

from controlplane.client_steps import Steps, ask


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A converter (named after its task), backend or engine; `reason` says why it is not used."""

    kind: str
    name: str
    target: str
    distribution: str
    version: str
    ok: bool
    reason: str | None = None


class Plugins(msgspec.Struct, frozen=True, kw_only=True):
    """What the server's environment has, and the tasks that can be registered."""

    data: list[PluginInfo]
    tasks: list[str]


def plugins() -> Steps[Plugins]:
    """Converters, backends and engines: ModelMora's own, and what plugins have brought."""
    return ask("GET", "/api/v1/plugins", Plugins)
