"""Work in the background as its user sees it: its progress, and what Ctrl-C does to it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from controlplane.cli.interrupts import taken
from controlplane.client_types import ModelMoraClientError, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from controlplane.cli.output import Output
    from controlplane.client import ModelMoraClient
    from controlplane.client_background import OnOperation
    from controlplane.client_operation_types import Operation
    from controlplane.client_types import OnProgress, Progress


@contextmanager
def shown_installation(
    client: ModelMoraClient, out: Output, model_id: str, phases: set[str]
) -> Iterator[OnProgress]:
    """Show the progress of an installation to people; `phases` collects those it went through."""

    def running() -> Operation | None:
        found = client.list_operations(model_id=model_id, status="active").data
        return found[0] if found else None

    with _away(out, phases), _left(client, out, running), _shown(out) as show:

        def on_progress(progress: Progress) -> None:
            phases.add(progress.phase)
            show(progress, "")

        yield on_progress


@contextmanager
def shown_operation(client: ModelMoraClient, out: Output) -> Iterator[OnOperation]:
    """Show the progress of an operation to people, of a sync that of all its installations."""
    last: list[Operation] = []

    running = _left(client, out, lambda: last[0] if last else None)
    with _away(out, last), running, _shown(out) as show:

        def on_operation(operation: Operation) -> None:
            last[:] = [operation]
            if operation.finished:
                return
            for step in operation.steps:
                if step.progress is not None:
                    show(step.progress, step.model_id)
            show(operation.progress, "")

        yield on_operation


@contextmanager
def _shown(out: Output) -> Iterator[Callable[[Progress, str], None]]:
    if out.as_json:
        yield lambda _progress, _subject: None
        return
    from controlplane.cli.progress import shown_progress

    with shown_progress() as show:
        yield show


@contextmanager
def _away(out: Output, begun: Collection[object]) -> Iterator[None]:
    """After the loss of the server: what becomes of work that had `begun`."""
    try:
        yield
    except ServerUnreachable:
        if begun:
            out.note(
                "Installations and syncs go on when the server runs again; "
                "look with: modelmora operations list"
            )
        raise


@contextmanager
def _left(
    client: ModelMoraClient, out: Output, running: Callable[[], Operation | None]
) -> Iterator[None]:
    """After Ctrl-C: cancel the operation if its user says so, else tell how to."""
    try:
        yield
    except KeyboardInterrupt:
        taken()
        _leave(client, out, running)
        raise


def _leave(client: ModelMoraClient, out: Output, running: Callable[[], Operation | None]) -> None:
    try:
        operation = running()
    except ModelMoraClientError:
        operation = None
    if operation is None:
        out.note("The server may go on with it; look with: modelmora operations list")
        return
    what = f"{operation.kind} of {operation.subject}"
    if not out.as_json and sys.stdin.isatty() and _confirmed(what):
        client.cancel_operation(operation.id)
        out.note(f"The {what} is cancelled.")
        return
    out.note(f"The server goes on with the {what}.")
    out.note(f"Watch it: modelmora operations show {operation.id} --follow")
    out.note(f"To cancel it: modelmora operations cancel {operation.id}")


def _confirmed(what: str) -> bool:
    """A second Ctrl-C is no: it wants out, and nothing else."""
    try:
        return click.confirm(f"Cancel the {what} at the server too?", default=False, err=True)
    except click.Abort:
        return False
