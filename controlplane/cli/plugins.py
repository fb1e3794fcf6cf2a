"""The command that lists what can convert and serve models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlplane.cli.base import client_command
from controlplane.cli.output import Block, Output, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_plugins import PluginInfo, Plugins


@click.command()
@client_command
def plugins(client: ModelMoraClient, out: Output) -> None:
    """List converters, backends and engines, and why one is not used.

    The server looks anew: what pip has installed since it started is known from then on.

    \b
    Example:
      modelmora plugins
    """
    out.result(client.plugins(), _listing)


def _listing(answer: Plugins) -> Iterable[Block]:
    yield Table(("kind", "name", "from", "version", "state"), [_row(one) for one in answer.data])


def _row(one: PluginInfo) -> tuple[str, ...]:
    state = "ok" if one.ok else f"not used: {one.reason}"
    return (one.kind, one.name, one.distribution, one.version, state)
