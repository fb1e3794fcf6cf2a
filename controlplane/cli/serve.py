"""The command serve, with an option for every setting."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.base import debug_option
from controlplane.cli.settings_table import SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable


def _option(setting: Setting) -> Callable[[Any], Any]:
    name = "--" + setting.name.replace("_", "-")
    if setting.kind == "flag":
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=setting.text)
    if setting.kind == "list":
        return click.option(name, multiple=True, metavar=setting.metavar, help=setting.text)
    # Values stay text: load_settings checks them, with one wording for file, environment and here.
    return click.option(name, metavar=setting.metavar, help=setting.text)


def _with_settings(command: Callable[..., int]) -> Callable[..., int]:
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


@click.command()
@click.option("--config", metavar="FILE", help="Settings file. Default: ./modelmora.yaml if there.")
@_with_settings
@debug_option
def serve(config: str | None, **options: Any) -> int:
    """Start the server and stay until Ctrl-C.

    Settings come from defaults, then modelmora.yaml, then MODELMORA_… variables, then these
    options; later ones win.

    \b
    Example:
      modelmora serve --port 9000 --preload sentence-transformers/all-MiniLM-L6-v2
    """
    from controlplane.settings import load_settings

    given = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items() if v != ()}
    settings = load_settings(config_file=Path(config) if config else None, overrides=given)
    # A start makes many objects and no garbage: looking for some takes a tenth of its time.
    gc.disable()
    # libuv starts programs with fork(2), after which gRPC's handlers begin its threads anew in the
    # child: of a hundred converters and Tritons two died of it before they began. gRPC reads this
    # when it is imported.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    try:
        # Only now: a wrong setting is answered before the server's libraries are read.
        from controlplane.app import serve as run_server

        return run_server(settings)
    finally:
        gc.enable()
