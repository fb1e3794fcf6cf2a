"""Commands on operations: list, show, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.base import client_command
from controlplane.cli.following import shown_operation
from controlplane.cli.output import Block, Output, Table, age, duration, facts, moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_operation_types import Operation, OperationPage


@click.group()
def operations() -> None:
    """Watch or cancel installations, syncs and verifications in the background.

    \b
    Example:
      modelmora operations list
    """


@operations.command("list")
@click.option("--model", "model_id", metavar="MODEL_ID", help="Only of this model.")
@click.option(
    "--status",
    metavar="STATUS",
    help="pending, running, succeeded, failed, cancelled; active: not ended.",
)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=20, show_default=True)
@client_command
def list_operations(
    client: ModelMoraClient,
    out: Output,
    model_id: str | None,
    status: str | None,
    **paging: Any,
) -> None:
    """List operations, the newest first.

    \b
    Example:
      modelmora operations list --status active
    """
    page = client.list_operations(model_id=model_id, status=status, **paging)
    out.result(page, _listing)
    if not page.data:
        out.note("No operation matches." if model_id or status else "No operations yet.")


def _listing(page: OperationPage) -> Iterable[Block]:
    if page.data:
        rows = [
            (one.id, one.kind, one.subject, one.status, _far(one), _when(one)) for one in page.data
        ]
        yield Table(("operation", "kind", "of", "status", "progress", "began"), rows)
    place = page.pagination
    if place.page < place.total_pages:
        yield f"Page {place.page} of {place.total_pages}; go on with --page {place.page + 1}"


def _far(operation: Operation) -> str:
    if operation.finished or operation.phase is None:
        return "-"
    percent = "" if operation.fraction is None else f" {operation.fraction:.0%}"
    return operation.phase + percent


def _when(operation: Operation) -> str:
    return age(operation.started_at or operation.created_at)


@operations.command()
@click.argument("operation_id", metavar="OPERATION")
@click.option("--follow", is_flag=True, help="Show its progress and wait until it has ended.")
@client_command
def show(client: ModelMoraClient, out: Output, operation_id: str, follow: bool) -> None:
    """Show an operation; with --follow as it goes on.

    \b
    Example:
      modelmora operations show 7c9e6679-7425-40de-944b-e07fc1f90ae7 --follow
    """
    if not follow:
        out.result(client.get_operation(operation_id), _description)
        return
    with shown_operation(client, out) as on_operation:
        ended = client.follow_operation(operation_id, on_operation)
    out.result(ended, _description)


def _description(operation: Operation) -> Iterable[Block]:
    error, began, ended = operation.error, operation.started_at, operation.finished_at
    took = (ended - began).total_seconds() if began and ended else None
    yield from facts(
        [
            ("operation", operation.id),
            ("kind", operation.kind),
            ("of", operation.subject),
            ("status", operation.status),
            ("progress", None if operation.finished else _far(operation)),
            ("message", operation.message),
            ("error", error and f"{error.message} ({error.code})"),
            ("attempts", operation.attempts if operation.attempts > 1 else None),
            ("created", operation.created_at and moment(operation.created_at)),
            ("started", began and moment(began)),
            ("finished", ended and moment(ended)),
            ("took", None if took is None else duration(took)),
        ]
    )


@operations.command()
@click.argument("operation_id", metavar="OPERATION")
@client_command
def cancel(client: ModelMoraClient, out: Output, operation_id: str) -> None:
    """Cancel an operation; returns when it has stopped.

    \b
    Example:
      modelmora operations cancel 7c9e6679-7425-40de-944b-e07fc1f90ae7
    """
    cancelled = client.cancel_operation(operation_id)
    out.result(cancelled, lambda one: [f"The {one.kind} of {one.subject} is cancelled."])
