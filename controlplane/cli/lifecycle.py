"""Commands on models' stay in memory: load, keep, release, warmup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlplane.cli import exits
from controlplane.cli.base import client_command, split_version
from controlplane.cli.output import Block, Output, Table, megabytes
from controlplane.cli.progress import shown_waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_lifecycle import LoadPlan, PlanStep, WarmUp
    from controlplane.client_types import LoadedModel, ModelInfo


@click.command()
@click.argument("models", metavar="MODEL_ID[@VERSION]...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only tell what would leave memory, and why.")
@click.pass_context
@client_command
def load(
    client: ModelMoraClient,
    out: Output,
    ctx: click.Context,
    models: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Load models into memory now, instead of at their first request.

    With --dry-run nothing is loaded; the exit code is 6 if they do not fit together.

    \b
    Example:
      modelmora load sentence-transformers/all-MiniLM-L6-v2
      modelmora load --dry-run my-team/one my-team/two
    """
    wanted = [split_version(model) for model in models]
    if dry_run:
        plan = client.plan(wanted)
        out.result(plan, _plan)
        ctx.exit(exits.OK if plan.fits else exits.UNAVAILABLE)
    loaded = []
    for model_id, version in wanted:
        with shown_waiting(f"Loading {model_id}"):
            loaded.append(client.load(model_id, version))
    if len(loaded) == 1:
        out.result(loaded[0], _loaded)
    else:
        out.result(loaded, lambda found: (line for model in found for line in _loaded(model)))


def _loaded(model: LoadedModel) -> Iterable[Block]:
    took = "" if model.load_seconds is None else f" in {model.load_seconds:.1f} s"
    memory = megabytes(model.memory_usage_mb)
    yield f"{model.model_id}@{model.version} is loaded{took} ({memory}, {model.device or 'cpu'})."


def _plan(plan: LoadPlan) -> Iterable[Block]:
    headers = ("model", "version", "needs", "figure is", "verdict", "memory after")
    yield Table(
        headers,
        [
            (
                step.model_id,
                step.version,
                megabytes(step.need_mb),
                step.need_source,
                step.verdict,
                megabytes(step.used_mb_after),
            )
            for step in plan.models
        ],
    )
    yield ""
    for step in plan.models:
        yield from _explained(step)
    yield (
        f"In use: {megabytes(plan.used_mb_before)} now, {megabytes(plan.used_mb_after)} after, "
        f"of {megabytes(plan.budget_mb)}; at most {plan.max_models} models."
    )
    if not plan.fits:
        yield "They do not fit together."


def _explained(step: PlanStep) -> Iterable[str]:
    for model in step.evictions:
        name, freed = f"{model.model_id}@{model.version}", megabytes(model.memory_mb)
        yield f"For {step.model_id}: {name} leaves ({freed}): {model.reason}."
    if step.reason:
        yield f"{step.model_id}: {step.verdict}, {step.reason}."


@click.command()
@click.argument("model_id")
@client_command
def keep(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """Have a model stay in memory: never evicted, and back by itself after a restart.

    It is loaded now if it is installed. Refused if all kept models do not fit together.

    \b
    Example:
      modelmora keep sentence-transformers/all-MiniLM-L6-v2
    """
    out.result(client.keep(model_id), _kept)


def _kept(model: ModelInfo) -> Iterable[Block]:
    later = "" if model.status == "ready" else f"; it is {model.status}, and loaded when ready"
    yield f"{model.model_id} stays in memory{later}."


@click.command()
@click.argument("model_id")
@client_command
def release(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """Let a kept model be evicted again; it leaves when others need its room.

    \b
    Example:
      modelmora release sentence-transformers/all-MiniLM-L6-v2
    """
    out.result(client.release(model_id), lambda m: [f"{m.model_id} may be evicted again."])


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@click.option(
    "--samples", type=click.IntRange(1, 1000), default=10, show_default=True, help="Inferences."
)
@client_command
def warmup(client: ModelMoraClient, out: Output, model: str, samples: int) -> None:
    """Load a model if need be, run test inferences and show how long they take.

    \b
    Example:
      modelmora warmup sentence-transformers/all-MiniLM-L6-v2 --samples 20
    """
    model_id, version = split_version(model)
    out.result(client.warm_up(model_id, version, samples=samples), _warm)


def _warm(done: WarmUp) -> Iterable[Block]:
    yield (
        f"{done.model_id}@{done.version} served after {done.wait_seconds:.1f} s; "
        f"{len(done.times_ms)} test inferences: first {done.first_ms:.1f} ms, "
        f"median {done.median_ms:.1f} ms, slowest {done.slowest_ms:.1f} ms."
    )
