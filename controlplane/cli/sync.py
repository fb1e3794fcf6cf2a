"""Commands that compare this machine with a lock: sync makes it equal, verify only looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.cli import exits
from controlplane.cli.base import client_command
from controlplane.cli.following import shown_operation
from controlplane.cli.locks import DEFAULT_FILE, read_lock
from controlplane.cli.output import Block, Output, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_lock_types import LockAction, LockComparison
    from controlplane.client_operation_types import Drift, Operation

_MB = 1024 * 1024
CONFIG_FILE = "modelmora.yaml"

_file_option = click.option(
    "--file", default=DEFAULT_FILE, show_default=True, metavar="FILE", help="The lock's file."
)
_name_option = click.option("--name", metavar="NAME", help="Instead, a lock the server keeps.")


@click.command()
@_file_option
@_name_option
@click.option("--frozen", is_flag=True, help="Change nothing; exit code 1 on any difference.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--prune", is_flag=True, help="Remove models that are not in the lock.")
@click.pass_context
@client_command
def sync(
    client: ModelMoraClient,
    out: Output,
    ctx: click.Context,
    file: str,
    name: str | None,
    frozen: bool,
    dry_run: bool,
    prune: bool,
) -> None:
    """Make this machine equal a lock: install, switch versions, verify every file.

    Without a lock file, install the models that modelmora.yaml lists.

    \b
    Example:
      modelmora sync
      modelmora sync --file modelmora.lock --frozen
      modelmora sync --name default --dry-run --prune
    """
    if name is None and not frozen and not Path(file).exists() and Path(CONFIG_FILE).exists():
        from controlplane.cli import catalog

        out.note(f"There is no {file}; installing what {CONFIG_FILE} lists.")
        (catalog.show_plan if dry_run else catalog.install_listed)(client, out)
        return
    text, name_in_file = _lock_text(client, file, name)
    found = client.compare_lock(text, prune=prune)
    refused = [a for a in found.actions if a.kind == "conflict" or frozen]
    if dry_run or refused:
        out.result(found, _plan)
        ctx.exit(exits.FAILED if refused else exits.OK)
    if name is None:
        client.import_lock(text)
    with shown_operation(client, out) as on_operation:
        done = client.sync_lock(
            name or name_in_file, frozen=frozen, prune=prune, on_operation=on_operation
        )
    out.result(done, _synced)
    ctx.exit(_code(done))


def _lock_text(client: ModelMoraClient, file: str, name: str | None) -> tuple[str, str]:
    """The lock as text, and its name."""
    if name is not None:
        return client.export_lock(name), name
    text, content = read_lock(Path(file))
    if content is None:
        raise click.ClickException(f"{file} does not exist; write it with: modelmora lock")
    return text, content.name


def _code(done: Operation) -> int:
    return exits.OK if done.status == "succeeded" else exits.FAILED


def _plan(found: LockComparison) -> Iterable[Block]:
    if not found.actions:
        yield "Nothing to do: this machine is as locked."
    else:
        yield _actions(found.actions)


def _actions(actions: list[LockAction]) -> Table:
    rows = [(a.kind, f"{a.model_id}@{a.version}", a.reason) for a in actions]
    return Table(("action", "model", "because"), rows)


def _synced(done: Operation) -> Iterable[Block]:
    for step in done.steps:
        error = f": {exits.one_line(step.error)}" if step.error else ""
        yield f"{step.action} {step.model_id}@{step.version} {step.state}{error}"
    yield from _verified(done)


def _verified(done: Operation) -> Iterable[Block]:
    for drift in done.drift:
        yield exits.one_line(_drift(drift))
    if done.status == "succeeded":
        size = (done.bytes_total or 0) / _MB
        yield f"This machine is as locked in {done.lock} ({size:.1f} MB verified)."
    else:
        why = exits.one_line(done.error.message) if done.error else done.status
        yield f"This machine is not as locked in {done.lock}: {why}"


def _drift(drift: Drift) -> str:
    what = f"{drift.model_id}@{drift.version}"
    if drift.path is None:
        return f"{what} is {drift.problem}"
    digests = f": expected {drift.expected}, found {drift.found}" if drift.found else ""
    return f"{what} {drift.part} {drift.path} is {drift.problem}{digests}"


@click.command()
@_file_option
@_name_option
@click.pass_context
@client_command
def verify(
    client: ModelMoraClient, out: Output, ctx: click.Context, file: str, name: str | None
) -> None:
    """Hash every file that a lock names; exit code 1 if one is not as locked.

    \b
    Example:
      modelmora verify
      modelmora verify --name default --json
    """
    with shown_operation(client, out) as on_operation:
        if name is not None:
            done = client.verify_lock(name, on_operation=on_operation)
        else:
            text, _ = _lock_text(client, file, None)
            done = client.verify_lock_file(text, on_operation=on_operation)
    out.result(done, _verified)
    ctx.exit(_code(done))
