"""What commands share: their options, the client, the group's look."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.interrupts import remembered
from controlplane.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

# `run` in main.py looks for the word itself: it must work also when parsing fails.
debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="On failure, show the whole traceback."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def client_command(
    function: Callable[..., None],
) -> Callable[..., None]:
    """A command that talks to the server: `function(client, out, …)`.

    Adds the options --url, --json and --debug.
    """

    @click.option("--url", metavar="URL", help="The server; else MODELMORA_URL, else this machine.")
    @json_option
    @debug_option
    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        from controlplane.cli.client import InterruptibleClient

        url, out = kwargs.pop("url"), Output(as_json=kwargs.pop("as_json"))
        try:
            client = InterruptibleClient(url)
        except ValueError as error:
            raise click.UsageError(f"{error}.") from error
        with remembered(), client:
            function(client, out, *args, **kwargs)

    return command


def split_version(text: str) -> tuple[str, str | None]:
    """`org/name@version` as id and version; None when no version is given.

    Raises:
        click.UsageError: when '@' is followed by nothing.
    """
    model_id, at, version = text.partition("@")
    if at and not version:
        raise click.UsageError(f"{text!r} has no version behind '@'.")
    return model_id, version or None
