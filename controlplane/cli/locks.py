"""Commands on locks: lock, and what is below it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli import exits
from controlplane.cli.base import client_command
from controlplane.cli.output import Block, Output, Table, age, facts, moment
from controlplane.client_types import ModelMoraApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_lock_types import Lock, LockComparison, LockList
    from controlplane.registry.lock import LockDocument

DEFAULT_FILE = "modelmora.lock"
_DEFAULT_NAME = "default"


@click.group(invoke_without_command=True)
@click.option("--name", metavar="NAME", help="The lock's name. Default: the file's, else default.")
@click.option("--env", metavar="ENV", help="The lock's environment. Default: production.")
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if it would change.")
@click.option("--upgrade", multiple=True, metavar="MODEL_ID", help="Lock its newest version.")
@click.option("--model", "models", multiple=True, metavar="MODEL_ID", help="Lock only these.")
@click.option("--output", default=DEFAULT_FILE, show_default=True, metavar="FILE")
@click.pass_context
@client_command
def lock(
    client: ModelMoraClient,
    out: Output,
    ctx: click.Context,
    name: str | None,
    env: str | None,
    check: bool,
    upgrade: tuple[str, ...],
    models: tuple[str, ...],
    output: str,
) -> None:
    """Write modelmora.lock: commits, checksums and converters of what is installed.

    \b
    Example:
      modelmora lock
      modelmora lock --check
      modelmora lock --upgrade sentence-transformers/all-MiniLM-L6-v2
    """
    if ctx.invoked_subcommand is not None:
        return
    chosen: dict[str, Any] = {"models": list(models) or None, "upgrade": list(upgrade)}
    path = Path(output)
    text, document = read_lock(path)
    if check:
        if document is None:
            raise click.ClickException(f"{path} does not exist; write it with: modelmora lock")
        found = client.compare_lock(text, **chosen)
        out.result(found, lambda it: _differences(it, path))
        ctx.exit(exits.FAILED if found.differences else exits.OK)
    if document is not None and name in (None, document.name):
        client.import_lock(text)  # the file is what counts, whatever the server remembers
        name = document.name
    made = _locked(client, name or _DEFAULT_NAME, env, chosen)
    fresh = client.export_lock(made.name)
    if fresh != text:
        write_whole(path, fresh)
    report = {
        "path": str(path),
        "name": made.name,
        "models": len(made.locked_models),
        "changed": fresh != text,
    }
    out.result(report, _written)


def read_lock(path: Path) -> tuple[str, LockDocument | None]:
    """Text and content of a lock's file; empty and None when there is no such file.

    Raises:
        InvalidLock: with line and fix.
    """
    from controlplane.registry import lock_file

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "", None
    document = lock_file.parse(content, str(path))
    return content.decode(), document


def _locked(client: ModelMoraClient, name: str, env: str | None, chosen: dict[str, Any]) -> Lock:
    changes = {key: value for key, value in chosen.items() if value is not None}
    try:
        if env is not None:
            changes["environment"] = env
        return client.update_lock(name, refresh=True, **changes)
    except ModelMoraApiError as error:
        if error.code != "LOCK_NOT_FOUND":
            raise
    return client.create_lock(name, env or "production", **chosen)


def _written(report: dict[str, Any]) -> Iterable[Block]:
    verb = "is written" if report["changed"] else "is up to date"
    count = report["models"]
    yield f"{report['path']} {verb}: {count} model{'' if count == 1 else 's'}."


def _differences(found: LockComparison, path: Path) -> Iterable[Block]:
    if not found.differences:
        yield f"{path} is up to date."
    for difference in found.differences:
        yield exits.one_line(difference.message)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        click.ClickException: it cannot be written.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves an empty file under the name
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from error


# -- the locks that the server keeps -----------------------------------------------------------


@lock.command("list")
@click.option("--env", metavar="ENV", help="Only locks of this environment.")
@client_command
def list_locks(client: ModelMoraClient, out: Output, env: str | None) -> None:
    """List the locks that the server keeps.

    \b
    Example:
      modelmora lock list
    """
    found = client.locks(env)
    out.result(found, _listing)
    if not found.data:
        out.note("No locks yet: modelmora lock")


def _listing(found: LockList) -> Iterable[Block]:
    if found.data:
        yield Table(
            ("lock", "environment", "models", "version", "active", "updated"),
            [
                (
                    item.name,
                    item.environment,
                    str(item.models),
                    str(item.version_number),
                    "yes" if item.active else "no",
                    age(item.updated_at),
                )
                for item in found.data
            ],
        )


@lock.command()
@click.argument("name")
@client_command
def show(client: ModelMoraClient, out: Output, name: str) -> None:
    """Show a lock, its models and the versions one can go back to.

    \b
    Example:
      modelmora lock show default
    """
    found, revisions = client.get_lock(name), client.lock_revisions(name)
    versions = ", ".join(str(revision.version) for revision in revisions.data)
    out.result(found, lambda it: _described(it, versions))


def _described(found: Lock, versions: str) -> Iterable[Block]:
    yield from facts(
        [
            ("lock", found.name),
            ("environment", found.environment),
            ("description", found.description),
            ("active", "yes" if found.active else "no"),
            ("version", str(found.version_number)),
            ("go back to", versions),
            ("changed", moment(found.generated_at)),
        ]
    )
    yield ""
    yield Table(
        ("model", "version", "commit", "checksum", "files"),
        [
            (
                model.model_id,
                model.version,
                (model.revision or "-")[:12],
                model.checksum,
                str(len(model.files)),
            )
            for model in found.locked_models
        ],
    )


@lock.command()
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="As it was at this version.")
@click.option("--output", metavar="FILE", help="Write it there instead of to stdout.")
@client_command
def export(
    client: ModelMoraClient, out: Output, name: str, version: int | None, output: str | None
) -> None:
    """Print a lock's file, or write it.

    \b
    Example:
      modelmora lock export default --output modelmora.lock
    """
    text = client.export_lock(name, version)
    if output is None:
        out.result({"name": name, "content": text}, lambda _: [text.rstrip("\n")])
        return
    write_whole(Path(output), text)
    out.result({"name": name, "path": output}, lambda _: [f"{output} is written."])


@lock.command("import")
@click.argument("file", default=DEFAULT_FILE)
@client_command
def import_lock(client: ModelMoraClient, out: Output, file: str) -> None:
    """Have the server keep a lock's file, under the name that is in it.

    \b
    Example:
      modelmora lock import modelmora.lock
    """
    text, document = read_lock(Path(file))
    if document is None:
        raise click.ClickException(f"{file} does not exist.")
    out.result(client.import_lock(text), _kept)


@lock.command()
@click.argument("name")
@click.argument("version", type=int)
@client_command
def rollback(client: ModelMoraClient, out: Output, name: str, version: int) -> None:
    """Have a lock say what it said at an earlier version; then: modelmora sync --name NAME.

    \b
    Example:
      modelmora lock rollback default 3
    """
    out.result(client.rollback_lock(name, version), _kept)


@lock.command()
@click.argument("name")
@client_command
def activate(client: ModelMoraClient, out: Output, name: str) -> None:
    """Have a lock protect its models from deletion, as a new one does.

    \b
    Example:
      modelmora lock activate default
    """
    out.result(client.update_lock(name, active=True), _kept)


@lock.command()
@click.argument("name")
@client_command
def deactivate(client: ModelMoraClient, out: Output, name: str) -> None:
    """Have a lock protect its models no longer.

    \b
    Example:
      modelmora lock deactivate default
    """
    out.result(client.update_lock(name, active=False), _kept)


def _kept(found: Lock) -> Iterable[Block]:
    state = "" if found.active else ", not active"
    count = len(found.locked_models)
    yield f"Lock {found.name} is at version {found.version_number}: {count} models{state}."


@lock.command()
@click.argument("name")
@client_command
def delete(client: ModelMoraClient, out: Output, name: str) -> None:
    """Forget a lock and all its versions; its models stay installed.

    \b
    Example:
      modelmora lock delete default
    """
    client.delete_lock(name)
    out.result({"name": name, "deleted": True}, lambda _: [f"Lock {name} is deleted."])
