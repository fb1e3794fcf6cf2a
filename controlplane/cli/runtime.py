"""Commands on what is in memory: unload, status, health."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli import exits
from controlplane.cli.base import client_command
from controlplane.cli.live import Size, Watch, as_renderable, away, interval_option
from controlplane.cli.output import (
    Block,
    Output,
    Table,
    document,
    duration,
    facts,
    megabytes,
)
from controlplane.cli.progress import shown_waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import LoadedModel, SystemStatus, Unloaded


@click.command()
@click.argument("model_id")
@client_command
def unload(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """Unload a model; returns when its memory is free.

    \b
    Example:
      modelmora unload sentence-transformers/all-MiniLM-L6-v2
    """
    with shown_waiting(f"Unloading {model_id}"):
        unloaded = client.unload(model_id)
    out.result(unloaded, _unloaded)


def _unloaded(answer: Unloaded) -> Iterable[Block]:
    freed = "" if answer.freed_mb is None else f" ({megabytes(answer.freed_mb)} freed)"
    yield f"{answer.model_id} is unloaded{freed}."


@click.command()
@click.option("--watch", is_flag=True, help="Refresh it until Ctrl-C.")
@interval_option
@client_command
def status(client: ModelMoraClient, out: Output, watch: bool, interval: float) -> None:
    """Show memory, Triton and the loaded models.

    \b
    Example:
      modelmora status
      modelmora status --watch --interval 5
    """
    if watch:
        Watch(StatusView(client), out, interval=interval).forever()
    else:
        out.result(client.status(), _status)


class StatusView:
    """A `live.View`."""

    def __init__(self, client: ModelMoraClient) -> None:
        self._client = client

    def read(self) -> SystemStatus:
        return self._client.status()

    def lines(self, value: SystemStatus, _: Size, /) -> RenderableType:
        return as_renderable(_status(value))

    def document(self, value: SystemStatus) -> object:
        return value

    def lost(self, why: str) -> object:
        return away(self._client.url, why)


def _status(status: SystemStatus) -> Iterable[Block]:
    memory, counts = status.memory, status.models
    yield from facts(
        [
            ("ModelMora", f"{status.version}, up {duration(status.uptime_seconds)}"),
            ("Triton", _triton(status.triton)),
            (
                "memory",
                f"{megabytes(memory.used_mb)} of {megabytes(memory.threshold_mb)} for models",
            ),
            ("machine", f"{megabytes(memory.available_mb)} of {megabytes(memory.total_mb)} free"),
            ("GPU", _gpus(status.gpu)),
            ("waiting", _queue(status.queue_depth)),
            ("models", f"{counts.get('registered', 0)} registered, {counts.get('ready', 0)} ready"),
        ]
    )
    yield ""
    if status.loaded_models:
        yield _loaded_table(status.loaded_models)
    else:
        yield "No model is loaded."


def _triton(triton: dict[str, Any]) -> str:
    where, restarts = triton.get("grpc_url"), triton.get("restarts")
    return f"{triton.get('state', 'unknown')}, {triton.get('kind', '')}" + (
        (f" at {where}" if where else "") + (f", {restarts} restarts" if restarts else "")
    )


def _queue(depth: dict[str, int]) -> str:
    """Requests that wait for a load, by priority; empty when nobody does."""
    waiting = ((name.removesuffix("_priority"), count) for name, count in depth.items() if count)
    return ", ".join(f"{count} {name}" for name, count in waiting)


def _gpus(gpu: dict[str, Any]) -> str:
    names = [str(device.get("name", "?")) for device in gpu.get("devices") or []]
    return ", ".join(names) or "none"


def _loaded_table(models: list[LoadedModel]) -> Table:
    """Narrow enough for 80 columns with a name such as that of all-MiniLM-L6-v2."""
    headers = ("model", "state", "memory", "served", "busy", "idle")
    rows = [
        (
            _named(model),
            model.state,
            megabytes(model.memory_usage_mb),
            str(model.request_count),
            _busy(model),
            _idle(model.last_used_at),
        )
        for model in models
    ]
    return Table(headers, rows)


def _busy(model: LoadedModel) -> str:
    """Requests that run, and those that wait: `4+12`."""
    waiting = f"+{model.waiting_requests}" if model.waiting_requests else ""
    return f"{model.active_requests}{waiting}"


def _idle(last_used: datetime | None) -> str:
    """Since the last request, in the largest unit: `12 min`; '-' when there was none."""
    if last_used is None:
        return "-"
    seconds = (datetime.now(timezone.utc) - last_used).total_seconds()
    return " ".join(duration(max(0.0, seconds)).split()[:2])


def _named(model: LoadedModel) -> str:
    return model.model_id if model.version == "main" else f"{model.model_id}@{model.version}"


@click.command()
@click.pass_context
@client_command
def health(client: ModelMoraClient, out: Output, ctx: click.Context) -> None:
    """Say whether the server and the loaded models work; exit code 6 if not.

    \b
    Example:
      modelmora health && echo fine
    """
    readiness, models = client.ready(), client.models_health()
    healthy = readiness.status == "ready" and models.unhealthy_count == 0
    report = document(client.health()) | document(readiness) | {"models": document(models)}
    out.result(report, _health)
    ctx.exit(exits.OK if healthy else exits.UNAVAILABLE)


def _health(report: dict[str, Any]) -> Iterable[Block]:
    checks = ", ".join(f"{name} {state}" for name, state in report.get("checks", {}).items())
    models = report["models"]
    yield from facts(
        [
            ("status", str(report["status"]).replace("_", " ")),
            ("checks", checks),
            ("models", f"{models['healthy_count']} healthy, {models['unhealthy_count']} unhealthy"),
        ]
    )
    for model in models["models"]:
        if not model["healthy"]:
            yield f"{model['model_id']} is unhealthy: {model.get('error', 'no reason given')}"
