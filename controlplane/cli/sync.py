"""Commands that compare this machine with a lock: sync makes it equal, verify only looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.cli import catalog, exits
from controlplane.cli.base import client_command
from controlplane.cli.locks import DEFAULT_FILE, read_lock
from controlplane.cli.output import Block, Output, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_lock_types import Drift, LockAction, LockActivity, LockComparison

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
    done = client.sync_lock(
        name or name_in_file, frozen=frozen, prune=prune, on_progress=_teller(out)
    )
    out.result(done, _synced)
    ctx.exit(exits.OK if done.state == "succeeded" else exits.FAILED)


def _lock_text(client: ModelMoraClient, file: str, name: str | None) -> tuple[str, str]:
    """The lock as text, and its name."""
    if name is not None:
        return client.export_lock(name), name
    text, content = read_lock(Path(file))
    if content is None:
        raise click.ClickException(f"{file} does not exist; write it with: modelmora lock")
    return text, content.name


def _plan(found: LockComparison) -> Iterable[Block]:
    if not found.actions:
        yield "Nothing to do: this machine is as locked."
    else:
        yield _actions(found.actions)


def _actions(actions: list[LockAction]) -> Table:
    rows = [(a.kind, f"{a.model_id}@{a.version}", a.reason) for a in actions]
    return Table(("action", "model", "because"), rows)


def _synced(done: LockActivity) -> Iterable[Block]:
    for step in done.steps:
        error = f": {exits.one_line(step.error)}" if step.error else ""
        yield f"{step.action} {step.model_id}@{step.version} {step.state}{error}"
    yield from _verified(done)


def _verified(done: LockActivity) -> Iterable[Block]:
    for drift in done.drift:
        yield exits.one_line(_drift(drift))
    if done.state == "succeeded":
        size = (done.bytes_total or 0) / _MB
        yield f"This machine is as locked in {done.lock} ({size:.1f} MB verified)."
    else:
        yield f"This machine is not as locked in {done.lock}: {exits.one_line(done.error or '')}"


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
    if name is not None:
        done = client.verify_lock(name, on_progress=_teller(out))
    else:
        text, _ = _lock_text(client, file, None)
        done = client.verify_lock_file(text, on_progress=_teller(out))
    out.result(done, _verified)
    ctx.exit(exits.OK if done.state == "succeeded" else exits.FAILED)


def _teller(out: Output) -> Callable[[LockActivity], None] | None:
    return None if out.as_json else _Lines(out).show


class _Lines:
    """A remark when a step begins or ends, for its phases, and for each tenth of verifying."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._told: set[str] = set()

    def show(self, activity: LockActivity) -> None:
        for step in activity.steps:
            phase = f" ({step.progress.phase})" if step.progress else ""
            if step.state not in ("waiting", "left"):
                self._tell(f"{step.action} {step.model_id}@{step.version}: {step.state}{phase}")
        if activity.bytes_total and activity.bytes_done:
            tenth = min(10, activity.bytes_done * 10 // activity.bytes_total)
            self._tell(f"Verifying: {tenth * 10}% of {activity.bytes_total / _MB:.1f} MB")

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._out.note(line)
