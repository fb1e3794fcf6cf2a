"""The command group, and the one place where errors become lines and exit codes."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import click

from controlplane.cli import (
    base,
    cache,
    catalog,
    config,
    db,
    events,
    exits,
    infer,
    lifecycle,
    locks,
    models,
    operations,
    plugins,
    runtime,
    serve,
    sync,
    top,
    tuning,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(
    name="modelmora",
    context_settings=base.HELP_NAMES,
    epilog="Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not found, 4 server unreachable, "
    "5 conflict, 6 no memory or unavailable, 130 interrupted.",
)
@click.version_option(metadata.version("modelmora"), message="%(prog)s %(version)s")
@base.debug_option
def cli() -> None:
    """ModelMora turns a HuggingFace model id into a production endpoint on NVIDIA Triton.

    \b
    Example:
      modelmora serve
      modelmora install sentence-transformers/all-MiniLM-L6-v2
      modelmora infer sentence-transformers/all-MiniLM-L6-v2 "Hello, world"
    """


for _command in (
    config.init,
    serve.serve,
    models.install,
    models.list_models,
    models.info,
    tuning.tune,
    versions.versions,
    versions.use,
    versions.upgrade,
    versions.downgrade,
    versions.pin,
    versions.unpin,
    versions.outdated,
    versions.remove_version,
    lifecycle.load,
    runtime.unload,
    lifecycle.keep,
    lifecycle.release,
    lifecycle.warmup,
    runtime.status,
    top.top,
    infer.infer,
    runtime.health,
    models.uninstall,
    events.events,
    db.db,
    locks.lock,
    sync.sync,
    sync.verify,
    operations.operations,
    catalog.catalog,
    plugins.plugins,
    cache.cache,
    config.config,
):
    cli.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    An error is one line on stderr; `--debug` raises it instead, traceback and all.
    """
    try:
        result = cli.main(list(arguments), prog_name="modelmora", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return exits.USAGE
    except SystemExit:
        # Click's answer to a broken pipe, once it has seen to it that flushing fails quietly.
        return exits.BROKEN_PIPE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return exits.INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            raise
        click.echo(exits.error_line(error), err=True)
        return exits.exit_code(error)
    return result if isinstance(result, int) else exits.OK
