"""Commands on the models that modelmora.yaml lists: show, plan, sync."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli import exits
from controlplane.cli.base import client_command, debug_option, json_option
from controlplane.cli.following import shown_operation
from controlplane.cli.output import Block, Output, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_operation_types import CatalogResult, CatalogSync
    from controlplane.registry.catalog_file import CatalogEntry

_file_option = click.option(
    "--file", "path", metavar="PATH", help="Settings file. Default: ./modelmora.yaml."
)


@click.group()
def catalog() -> None:
    """Install the models that modelmora.yaml lists.

    \b
    Example:
      modelmora catalog sync
    """


def _entries(path: str | None) -> tuple[Path, tuple[CatalogEntry, ...]]:
    """The file and what it lists.

    Raises:
        SettingsError: the file is wrong, naming the place.
        click.UsageError: there is no file, or it lists nothing.
    """
    from controlplane.config_file import find_config_file
    from controlplane.registry import plugins
    from controlplane.registry.catalog_file import read_catalog

    file = find_config_file(Path(path) if path else None, os.environ)
    if file is None:
        raise click.UsageError("There is no modelmora.yaml here; write one with: modelmora init")
    plugins.learn()
    entries = read_catalog(file, os.environ)
    if not entries:
        raise click.UsageError(f"{file} lists no models: it has no `models:`.")
    return file, entries


def _bodies(entries: Iterable[CatalogEntry]) -> list[dict[str, Any]]:
    """Entries as the REST API takes them, without what they leave out."""
    import msgspec

    bodies = [msgspec.to_builtins(entry) for entry in entries]
    return [{name: value for name, value in body.items() if value is not None} for body in bodies]


@catalog.command()
@_file_option
@json_option
@debug_option
def show(path: str | None, as_json: bool) -> None:
    """Show the models that the file lists, checked and with variables replaced.

    \b
    Example:
      modelmora catalog show
    """
    file, entries = _entries(path)
    answer = {"file": str(file), "models": _bodies(entries)}
    Output(as_json=as_json).result(answer, _listing)


def _listing(answer: dict[str, Any]) -> Iterable[Block]:
    rows = [
        (
            entry["model_id"],
            entry.get("version", "-"),
            entry.get("task_type", "-"),
            entry.get("source_url", "HuggingFace hub"),
            ", ".join(name for name in ("preload", "pinned") if entry.get(name)) or "-",
        )
        for entry in answer["models"]
    ]
    yield Table(("model", "version", "task", "source", "marks"), rows)


@catalog.command()
@_file_option
@client_command
def plan(client: ModelMoraClient, out: Output, path: str | None) -> None:
    """Show what `catalog sync` would do; nothing is changed.

    \b
    Example:
      modelmora catalog plan
    """
    show_plan(client, out, path)


def show_plan(client: ModelMoraClient, out: Output, path: str | None = None) -> None:
    """What installing the file's models would do. Raises as `install_listed`."""
    _, entries = _entries(path)
    planned = client.sync_catalog(_bodies(entries), dry_run=True)
    out.result(planned, _report)
    _fail_if_any(planned)


@catalog.command()
@_file_option
@click.option("--no-wait", is_flag=True, help="Return when the installations have begun.")
@client_command
def sync(client: ModelMoraClient, out: Output, path: str | None, no_wait: bool) -> None:
    """Register and install the models that the file lists; others are left alone.

    What is as the file wants it stays as it is. Exit code 1 if a model failed.

    \b
    Example:
      modelmora catalog sync --file deploy/modelmora.yaml
    """
    install_listed(client, out, path, no_wait=no_wait)


def install_listed(
    client: ModelMoraClient, out: Output, path: str | None = None, *, no_wait: bool = False
) -> None:
    """Register and install what the file lists; None takes ./modelmora.yaml.

    Raises:
        SettingsError, click.UsageError: the file is wrong, missing or lists nothing.
        click.exceptions.Exit: a model failed.
    """
    _, entries = _entries(path)
    bodies = _bodies(entries)
    done = client.sync_catalog(bodies)
    if not no_wait:
        done = _waited(client, out, bodies, done)
    out.result(done, _report)
    _fail_if_any(done)


def _waited(
    client: ModelMoraClient, out: Output, bodies: list[dict[str, Any]], began: CatalogSync
) -> CatalogSync:
    """Follow the installations to their ends; what each result came to."""
    import msgspec

    ended = [_followed(client, out, result) for result in began.results]
    if any("use" in result.actions and result.status == "done" for result in ended):
        # Now that they are ready they can become the current versions.
        again = client.sync_catalog(bodies).results
        ended = [
            last if last.status == "failed" and first.status == "done" else first
            for first, last in zip(ended, again, strict=True)
        ]
    return msgspec.structs.replace(began, results=ended)


def _followed(client: ModelMoraClient, out: Output, result: CatalogResult) -> CatalogResult:
    import msgspec

    if result.operation is None:
        return result
    out.note(f"{result.model_id}@{result.version}:")
    with shown_operation(client, out) as on_operation:
        operation = client.follow_operation(result.operation.id, on_operation)
    well = operation.status == "succeeded"
    return msgspec.structs.replace(
        result,
        operation=operation,
        status="done" if well else "failed",
        message="" if operation.error is None else operation.error.message,
        error=operation.error,
    )


def _report(answer: CatalogSync) -> Iterable[Block]:
    rows = [
        (
            result.model_id,
            result.version,
            ", ".join(result.actions).replace("_", " ") or "-",
            result.status,
            result.message or "-",
        )
        for result in answer.results
    ]
    yield Table(("model", "version", "to do" if answer.dry_run else "done", "status", ""), rows)
    if answer.in_sync:
        yield "All models are as the file wants them."


def _fail_if_any(answer: CatalogSync) -> None:
    """Raises SystemExit-like click exit when a model failed."""
    if any(result.status == "failed" for result in answer.results):
        raise click.exceptions.Exit(exits.FAILED)
