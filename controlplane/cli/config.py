"""Commands on settings: init, config show, config validate. They need no server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.base import debug_option, json_option
from controlplane.cli.output import Block, Output, Table
from controlplane.cli.settings_table import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER = """\
# ModelMora's settings. Remove the '#' of a line to change its setting.
# MODELMORA_… variables and options of `modelmora serve` win over this file.
# ${NAME} and ${NAME:-default} are replaced from the environment.
# Relative paths count from the directory in which `modelmora serve` is started.
"""

_MODELS = """\
# The models of this deployment. Install what is listed: modelmora catalog sync
# Not a setting: the server does not read it by itself.
#models:
#  - model_id: sentence-transformers/all-MiniLM-L6-v2
#    version: main                # branch, tag or commit
#    preload: true                # load it when the server starts
#  - model_id: my-team/my-model
#    version: v1.2.0
#    pinned: true                 # only a commit or semantic version will do
#    source: ${MODELS_DIR:-./models}/my-model   # a directory, from this file's
#    task: txt2embed              # where the model's files do not say
#    display_name: My model
#    resources: {memory_mb: 512}
"""


@click.command()
@click.option("--config", "path", default="modelmora.yaml", show_default=True, metavar="PATH")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
@debug_option
def init(path: str, force: bool, as_json: bool) -> None:
    """Write a settings file with every setting explained.

    \b
    Example:
      modelmora init
    """
    target = Path(path)
    _write(target, template(), replace=force)
    answer = {"path": str(target), "created": True}
    Output(as_json=as_json).result(
        answer, lambda _: [f"{target} is written. Next: modelmora serve"]
    )


def template() -> str:
    """The commented settings file."""
    entries = (f"# {setting.text}\n#{setting.name}: {setting.example}\n" for setting in SETTINGS)
    return "\n".join([_HEADER, *entries, _MODELS])


def _write(target: Path, text: str, *, replace: bool) -> None:
    """Write the file whole or not at all.

    Raises:
        click.ClickException: it exists already, or cannot be written.
    """
    handle, temporary = -1, ""
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        if replace:
            Path(temporary).replace(target)
        else:
            os.link(temporary, target)  # unlike a rename, it fails when the target is there
    except FileExistsError:
        raise click.ClickException(f"{target} exists; replace it with --force.") from None
    except OSError as error:
        raise click.ClickException(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@click.group()
def config() -> None:
    """Show or check the settings.

    \b
    Example:
      modelmora config show
    """


@config.command()
@click.option("--file", "path", metavar="PATH", help="Settings file. Default: ./modelmora.yaml.")
@json_option
@debug_option
def show(path: str | None, as_json: bool) -> None:
    """Show the settings in force here, and where each comes from.

    \b
    Example:
      MODELMORA_PORT=9000 modelmora config show
    """
    from controlplane.settings import load_settings_with_sources

    settings, sources = load_settings_with_sources(config_file=Path(path) if path else None)
    values = settings.public()
    report = {name: {"value": values[name], "source": sources[name]} for name in values}
    Output(as_json=as_json).result(report, _settings)


def _settings(report: dict[str, dict[str, Any]]) -> Iterable[Block]:
    rows = [(name, _shown(entry["value"]), entry["source"]) for name, entry in report.items()]
    yield Table(("setting", "value", "from"), rows)


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)


@config.command()
@click.option("--file", "path", metavar="PATH", help="Settings file. Default: ./modelmora.yaml.")
@json_option
@debug_option
def validate(path: str | None, as_json: bool) -> None:
    """Check the settings file, the models it lists and the MODELMORA_… variables.

    Exit code 2 if something is wrong.

    \b
    Example:
      modelmora config validate --file modelmora.yaml
    """
    from controlplane.config_file import find_config_file
    from controlplane.registry.catalog_file import read_catalog
    from controlplane.settings import load_settings

    file = find_config_file(Path(path) if path else None, os.environ)
    load_settings(config_file=file)
    if file is not None:
        read_catalog(file, os.environ)
    where = str(file) if file else "no settings file; the environment"
    answer = {"valid": True} | ({"file": str(file)} if file else {})
    Output(as_json=as_json).result(answer, lambda _: [f"Valid: {where}"])
