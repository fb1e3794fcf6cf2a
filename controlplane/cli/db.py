"""Commands on the database's file: backup, restore, check, downgrade. They need no server."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli import exits
from controlplane.cli.base import debug_option, json_option
from controlplane.cli.output import Block, Output, facts, megabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlplane.settings import Settings

_MB = 1024 * 1024


def file_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command on the files of a data directory: `function(settings, out, …)`."""

    @click.option("--data-dir", metavar="DIR", help="The server's data directory, as in serve.")
    @click.option("--config", "config_file", metavar="FILE", help="Its settings file.")
    @json_option
    @debug_option
    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        import structlog

        from controlplane.settings import load_settings

        # What the server would log of it is in the answer; stdout is for that alone.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

        data_dir, file = kwargs.pop("data_dir"), kwargs.pop("config_file")
        settings = load_settings(
            config_file=Path(file) if file else None, overrides={"data_dir": data_dir}
        )
        return function(settings, Output(as_json=kwargs.pop("as_json")), *args, **kwargs)

    return command


@click.group()
def db() -> None:
    """Back up, restore and check the database.

    \b
    Example:
      modelmora db backup /var/backups/modelmora.db
    """


@db.command()
@click.argument("file", required=False)
@file_command
def backup(settings: Settings, out: Output, file: str | None) -> None:
    """Copy the database to FILE, while the server runs or not.

    The copy is checked before it gets its name; an existing file is not replaced. Without FILE
    it goes to backups/ in the data directory.

    \b
    Example:
      modelmora db backup /var/backups/modelmora-2026-01-31.db
    """
    from controlplane.backups import named, write_backup

    target = named(settings.data_dir, None) if file is None else Path(file)
    done = write_backup(settings.database, target)
    out.result(
        done,
        lambda b: [f"{b.path} is written ({b.bytes / _MB:.1f} MB, {b.models} models), and sound."],
    )


@db.command()
@click.argument("file")
@file_command
def restore(settings: Settings, out: Output, file: str) -> None:
    """Put the backup FILE in the database's place; the server must be stopped.

    The replaced database is kept in backups/. At its next start the server marks models whose
    files are gone as failed, and removes converted models that the backup does not know.

    \b
    Example:
      modelmora db restore /var/backups/modelmora-2026-01-31.db
    """
    from controlplane.backups import restore as put_back
    from controlplane.backups import server_stopped

    with server_stopped(settings.data_dir, "restore the backup"):
        kept = put_back(Path(file), settings.database)
    answer = {"database": str(settings.database), "restored": file}
    if kept is not None:
        answer["replaced"] = str(kept)
    out.result(answer, _restored)


def _restored(answer: dict[str, str]) -> Iterable[Block]:
    yield f"{answer['database']} is restored from {answer['restored']}."
    if "replaced" in answer:
        yield f"The database that was there is kept as {answer['replaced']}."


@db.command()
@click.argument("file", required=False)
@click.pass_context
@file_command
def check(settings: Settings, out: Output, ctx: click.Context, file: str | None) -> None:
    """Check the database, or the backup FILE; exit code 1 if it is not sound.

    Every page, key, index and the schema; and, for the database itself, whether the files of
    installed models are there. What only disagrees is a warning.

    \b
    Example:
      modelmora db check
    """
    from controlplane.registry.consistency import check as examine

    if file is not None:
        report = examine(Path(file))
    else:
        downloads = settings.data_dir / "downloads"
        report = examine(settings.database, settings.model_repository, downloads)
    out.result(report, _report)
    ctx.exit(exits.OK if report.sound else exits.FAILED)


def _report(report: Any) -> Iterable[Block]:
    yield from facts(
        [
            ("database", report.path),
            ("size", megabytes(report.bytes / _MB)),
            ("schema", report.schema),
            ("rows", f"{report.models} models, {report.versions} versions, {report.events} events"),
        ]
    )
    yield from (f"Problem: {text}" for text in report.problems)
    yield from (f"Warning: {text}" for text in report.warnings)
    yield "It is sound." if report.sound else "It is NOT sound: restore a backup."


@db.command()
@click.option("--to", metavar="STEP", required=True, help="The newest migration that stays.")
@file_command
def downgrade(settings: Settings, out: Output, to: str) -> None:
    """Take migrations back, for an older ModelMora; the server must be stopped.

    A backup is made before. What only newer tables could hold is lost.

    \b
    Example:
      modelmora db downgrade --to m0001_registry
    """
    from controlplane.backups import server_stopped
    from controlplane.db import downgrade as take_back

    with server_stopped(settings.data_dir, "downgrade its database"):
        undone, kept = take_back(settings.database, to=to)
    answer = {"database": str(settings.database), "undone": undone, "backup": str(kept)}
    text = f"{', '.join(undone) or 'Nothing'} taken back; before that, a backup: {kept}"
    out.result(answer, lambda _: [text])
