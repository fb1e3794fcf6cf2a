"""Commands on a model's versions: versions, use, upgrade, downgrade, pin, outdated, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlplane.cli.base import client_command, split_version
from controlplane.cli.following import shown_installation
from controlplane.cli.output import Block, Output, Table, age, megabytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import ModelInfo
    from controlplane.client_version_types import (
        UpdateInfo,
        UpdateList,
        VersionList,
        VersionSwitched,
    )

_COMMIT_DIGITS = 12
_HOW = {
    "live": "no request waited",
    "drained": "no room for both in memory: requests waited meanwhile",
}


@click.command()
@click.argument("model_id")
@client_command
def versions(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """List a model's versions; the current one has a star.

    \b
    Example:
      modelmora versions sentence-transformers/all-MiniLM-L6-v2
    """
    out.result(client.versions(model_id), _versions)


def _versions(listing: VersionList) -> Iterable[Block]:
    yield Table(
        ("version", "status", "commit", "in Triton", "memory", "added"),
        [
            (
                f"{version.version}{' *' if version.current else ''}",
                "loaded" if version.loaded else version.status,
                (version.revision or "-")[:_COMMIT_DIGITS],
                str(version.triton_version),
                megabytes(version.measured_memory_mb),
                age(version.created_at),
            )
            for version in listing.data
        ],
    )
    if listing.pinned:
        yield f"{listing.model_id} is pinned: upgrades are refused."


@click.command()
@click.argument("model", metavar="MODEL_ID@VERSION")
@client_command
def use(client: ModelMoraClient, out: Output, model: str) -> None:
    """Switch to an installed version.

    A loaded model goes on answering: the new version is loaded before the old one
    leaves. VERSION `latest` is the newest that is installed.

    \b
    Example:
      modelmora use sentence-transformers/all-MiniLM-L6-v2@v2.0.0
    """
    model_id, version = _named(model)
    out.result(client.use(model_id, version), _switched)


def _named(model: str) -> tuple[str, str]:
    """Model id and version, where a version has to be named.

    Raises:
        click.UsageError: when it is not.
    """
    model_id, version = split_version(model)
    if version is None:
        raise click.UsageError(f"Name the version: {model}@VERSION.")
    return model_id, version


def _switched(done: VersionSwitched) -> Iterable[Block]:
    if done.version == done.previous_version:
        yield f"{done.model_id}@{done.version} is current already."
        return
    how = f" ({_HOW[done.switch]})" if done.switch in _HOW else ""
    yield f"{done.model_id}@{done.version} is current, instead of {done.previous_version}{how}."


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop waiting after this long.")
@client_command
def upgrade(client: ModelMoraClient, out: Output, model: str, timeout: float | None) -> None:
    """Install a newer version and switch to it when it is ready.

    Without VERSION: the highest newer tag or, where the model follows a branch,
    what the branch points at now.

    \b
    Example:
      modelmora upgrade sentence-transformers/all-MiniLM-L6-v2
      modelmora upgrade my-team/my-model@v2.1.0
    """
    model_id, version = split_version(model)
    with shown_installation(client, out, model_id, set()) as on_progress:
        done = client.upgrade(model_id, version, on_progress, timeout)
    out.result(done, _upgraded)


def _upgraded(done: VersionSwitched) -> Iterable[Block]:
    if done.version == done.previous_version:
        yield f"{done.model_id}@{done.version} is up to date."
    else:
        yield from _switched(done)


@click.command()
@click.argument("model", metavar="MODEL_ID@VERSION")
@client_command
def downgrade(client: ModelMoraClient, out: Output, model: str) -> None:
    """Switch to an installed version that is older than the current one.

    \b
    Example:
      modelmora downgrade sentence-transformers/all-MiniLM-L6-v2@v1.0.0
    """
    model_id, version = _named(model)
    out.result(client.downgrade(model_id, version), _switched)


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@client_command
def pin(client: ModelMoraClient, out: Output, model: str) -> None:
    """Have upgrades of a model refused; VERSION is made current before.

    \b
    Example:
      modelmora pin sentence-transformers/all-MiniLM-L6-v2@v1.0.0
    """
    model_id, version = split_version(model)
    out.result(client.pin(model_id, version), _pinned)


def _pinned(model: ModelInfo) -> Iterable[Block]:
    yield f"{model.model_id} is pinned to {model.version}."


@click.command()
@click.argument("model_id")
@client_command
def unpin(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """Allow upgrades of a model again.

    \b
    Example:
      modelmora unpin sentence-transformers/all-MiniLM-L6-v2
    """
    out.result(client.unpin(model_id), lambda model: [f"{model.model_id} is no longer pinned."])


@click.command()
@click.argument("model_id", required=False)
@client_command
def outdated(client: ModelMoraClient, out: Output, model_id: str | None) -> None:
    """Show which branches moved on the hub and which newer tags exist.

    Models that come from a directory are left out.

    \b
    Example:
      modelmora outdated
    """
    found = client.outdated(model_id)
    out.result(found, _outdated)
    if not any(update.outdated or update.error for update in found.data):
        out.note("Everything is up to date.")


def _outdated(found: UpdateList) -> Iterable[Block]:
    shown = [update for update in found.data if update.outdated or update.error]
    if shown:
        yield Table(
            ("model", "version", "commit", "on the hub", "pinned"),
            [
                (
                    update.model_id,
                    update.version,
                    (update.revision or "-")[:_COMMIT_DIGITS],
                    _news(update),
                    "yes" if update.pinned else "",
                )
                for update in shown
            ],
        )


def _news(update: UpdateInfo) -> str:
    if update.error:
        return f"unknown: {update.error}"
    if update.newer_versions:
        return ", ".join(update.newer_versions)
    return f"{update.branch} is at {(update.branch_revision or '')[:_COMMIT_DIGITS]}"


@click.command("remove-version")
@click.argument("model", metavar="MODEL_ID@VERSION")
@client_command
def remove_version(client: ModelMoraClient, out: Output, model: str) -> None:
    """Remove a version with its files; never the current one.

    Running requests on it end first. Its name may only come back with the same files.

    \b
    Example:
      modelmora remove-version sentence-transformers/all-MiniLM-L6-v2@v1.0.0
    """
    model_id, version = _named(model)
    client.remove_version(model_id, version)
    document = {"model_id": model_id, "version": version, "removed": True}
    out.result(document, lambda _: [f"{model_id}@{version} is removed."])
