"""Commands on the cache of received files: cache ls, prune, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlplane.cli import exits
from controlplane.cli.base import client_command
from controlplane.cli.output import Block, Output, Table, facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import CacheBlob, CacheContent, CachePruned, CacheVerified


@click.group()
def cache() -> None:
    """Look at the files that versions share, clean up, verify."""


@cache.command("ls")
@click.option(
    "--limit", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Files listed."
)
@client_command
def list_cache(client: ModelMoraClient, out: Output, limit: int) -> None:
    """Show what is in the cache, the largest files first, and which versions use it.

    \b
    Example:
      modelmora cache ls --limit 5
    """
    out.result(client.cache(limit), _listing)


@cache.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@client_command
def prune(client: ModelMoraClient, out: Output, dry_run: bool) -> None:
    """Remove files that no version uses, and downloads that broke off.

    \b
    Example:
      modelmora cache prune --dry-run
    """
    out.result(client.prune_cache(dry_run=dry_run), _pruned)


@cache.command()
@click.pass_context
@client_command
def verify(client: ModelMoraClient, out: Output, context: click.Context) -> None:
    """Hash every file of the cache; damaged ones are removed and named (code 1).

    \b
    Example:
      modelmora cache verify
    """
    found = client.verify_cache()
    out.result(found, _verified)
    if found.damaged:
        context.exit(exits.FAILED)


def _listing(content: CacheContent) -> Iterable[Block]:
    if content.blobs:
        yield Table(
            ("sha256", "size", "used by"),
            [(blob.sha256[:16], _size(blob.size), _users(blob)) for blob in content.blobs],
        )
        yield ""
    yield from facts(
        [
            ("files", f"{content.blob_count}, {_size(content.bytes)}"),
            ("unused", _size(content.unused_bytes)),
            ("saved by sharing", _size(content.saved_bytes)),
            ("broken-off downloads", f"{content.partials}, {_size(content.partial_bytes)}"),
        ]
    )


def _pruned(answer: CachePruned) -> Iterable[Block]:
    verb = "would be removed" if answer.dry_run else "removed"
    yield (
        f"{answer.blobs} unused files and {answer.partials} broken-off downloads {verb} "
        f"({_size(answer.freed_bytes)})."
    )


def _verified(answer: CacheVerified) -> Iterable[Block]:
    for blob in answer.damaged:
        yield f"{blob.sha256} is damaged; used by {_users(blob)}."
    count = len(answer.damaged)
    yield f"{answer.blobs} files ({_size(answer.bytes)}) verified, {count} damaged."


def _users(blob: CacheBlob) -> str:
    shown = ", ".join(blob.users[:3])
    return f"{shown} and {len(blob.users) - 3} more" if len(blob.users) > 3 else shown or "-"


def _size(count: int) -> str:
    """Bytes for people: `0 B`, `12.3 kB`, `86.7 MB`."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1024 and len(units) > 1:
        size, _ = size / 1024, units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
