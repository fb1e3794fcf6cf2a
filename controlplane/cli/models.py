"""Commands on the catalog: install, list, info, uninstall."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.base import client_command, split_version
from controlplane.cli.engines import candidate_lines, engine_options
from controlplane.cli.following import shown_installation
from controlplane.cli.output import Block, Output, Table, age, facts, megabytes, moment
from controlplane.cli.ready_models import described, summary
from controlplane.client_types import (
    ModelInfo,
    ModelMoraApiError,
    ModelPage,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlplane.client import ModelMoraClient
    from controlplane.client_memory import MemoryRecord

_MB = 1024 * 1024


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@click.option("--task", metavar="TASK", help="What the model does, if its files do not say.")
@click.option(
    "--source",
    metavar="SRC",
    help="A directory on the server's machine, or a URL; else the HuggingFace hub.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop waiting after this long.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the converter run the repository's own code; the server must allow it.",
)
@click.option("--use", is_flag=True, help="Make the version current when it is ready.")
@engine_options
@client_command
def install(
    client: ModelMoraClient,
    out: Output,
    model: str,
    task: str | None,
    source: str | None,
    timeout: float | None,
    trust_remote_code: bool,
    use: bool,
    engine: str | None,
    precision: str | None,
) -> None:
    """Download a model, convert it and wait until it can be served.

    VERSION is a branch, tag or commit of its repository (default: main). A further version is
    installed beside the others. Installing what is installed changes nothing. The fastest engine
    that computes the same is chosen by measurement, unless you name one.

    \b
    Example:
      modelmora install sentence-transformers/all-MiniLM-L6-v2
      modelmora install my-team/my-model@v2 --source ./my-model
    """
    model_id, version = split_version(model)
    source_url = None if source is None else as_source_url(source)
    phases: set[str] = set()
    with shown_installation(client, out, model_id, phases) as on_progress:
        installed = client.install(
            *(model_id, version, task, source_url, on_progress, timeout),
            trust_remote_code=trust_remote_code,
            engine=engine,
            precision=precision,
        )
    if use and version is not None:
        client.use(model_id, version)
        installed = client.get(model_id)
    out.result(installed, lambda done: _installed(done, already=phases <= {"ready"}))


def as_source_url(source: str) -> str:
    """A URL as it is; an existing directory as an absolute file:// URL.

    Raises:
        click.UsageError: it is neither.
    """
    if "://" in source:
        return source
    path = Path(source).expanduser()
    if not path.is_dir():
        raise click.UsageError(f"--source {source}: no such directory, and not a URL.")
    return path.resolve().as_uri()


def _installed(model: ModelInfo, *, already: bool) -> Iterable[Block]:
    artefact = model.artefact or {}
    ready_made = artefact.get("ready_made")
    dimension, parity = artefact.get("dimension"), artefact.get("parity") or {}
    remarks = [
        f"used as it is: {summary(ready_made)}" if ready_made else "",
        f"{dimension} dimensions" if dimension else "",
        megabytes(model.artefact_bytes / _MB) if model.artefact_bytes else "",
        f"cosine to PyTorch ≥ {parity['min_cosine']:.7f}" if "min_cosine" in parity else "",
    ]
    remark = ", ".join(filter(None, remarks))
    verb = "is already installed" if already else "is installed"
    yield f"{model.model_id}@{model.version} {verb}" + (f" ({remark})." if remark else ".")
    if model.current_version not in (None, model.version):
        yield f"{model.current_version} stays current; to switch: modelmora use " + (
            f"{model.model_id}@{model.version}"
        )
    elif ready_made:
        yield f"Call it with any Triton client as {model.triton_name}, or over /v2."
    else:
        yield f"Try it: modelmora infer {model.model_id} {_first_input(model, artefact)}"


_PICTURE = "--image picture.jpg"
_FIRST_INPUTS = {
    "txt2embed": '"Hello, world"',
    "txt2txt": '"Once upon a time"',
    "txt2img": '"a red fox"',
    "txt2audio": '"Hello, world"',
    "img2embed": _PICTURE,
    "img2txt": _PICTURE,
    "img2img": f'"make it winter" {_PICTURE}',
    "object_detection": _PICTURE,
    "audio2txt": "--audio speech.wav",
    "question_answering": '"Who wrote it?" --context "It was written by Ada."',
}


def _first_input(model: ModelInfo, artefact: Mapping[str, Any]) -> str:
    """What to ask the model first; classifiers and plugins' models tell by their tensors."""
    inputs = artefact.get("inputs") or []
    if model.task_type == "classification":
        return _PICTURE if "image_input" in inputs else '"Hello, world"'
    names = " ".join(f"--input {name}=VALUE" for name in inputs)
    return _FIRST_INPUTS.get(model.task_type, names or '"Hello, world"')


@click.command("list")
@click.option("--task", metavar="TASK", help="Only models of this task.")
@click.option(
    "--status", metavar="STATUS", help="registered, downloading, exporting, ready, failed."
)
@click.option("--search", metavar="TEXT", help="Only models whose id or name contains TEXT.")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=100, show_default=True)
@client_command
def list_models(
    client: ModelMoraClient,
    out: Output,
    task: str | None,
    status: str | None,
    search: str | None,
    **paging: Any,
) -> None:
    """List the models of the catalog.

    \b
    Example:
      modelmora list --task txt2embed --status ready
    """
    page = client.list(task_type=task, status=status, search_text=search, **paging)
    out.result(page, _listing)
    if not page.data:
        filtered = task or status or search or page.pagination.total_items
        out.note("No model matches." if filtered else "No models yet: modelmora install MODEL_ID")


def _listing(page: ModelPage) -> Iterable[Block]:
    if page.data:
        yield Table(
            ("model", "version", "task", "status", "memory", "updated"),
            [
                (
                    model.model_id,
                    model.version,
                    model.task_type,
                    model.status,
                    megabytes(model.measured_memory_mb),
                    age(model.updated_at),
                )
                for model in page.data
            ],
        )
    place = page.pagination
    if place.page < place.total_pages:
        yield f"Page {place.page} of {place.total_pages}; go on with --page {place.page + 1}"


@click.command()
@click.argument("model_id")
@client_command
def info(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """Show everything known about a model.

    \b
    Example:
      modelmora info sentence-transformers/all-MiniLM-L6-v2
    """
    model = client.get(model_id)
    out.result(model, _description)
    if not out.as_json:
        _show_memory(client, out, model_id)


def _show_memory(client: ModelMoraClient, out: Output, model_id: str) -> None:
    """What it took in memory when it was last there; nothing if it never was."""
    try:
        records = client.memory(model_id, page_size=5).data
    except ModelMoraApiError:  # a server from before there was a record
        return
    if records:
        out.result(records, _memory_table)


def _memory_table(records: Iterable[MemoryRecord]) -> Iterable[Block]:
    rows = [
        (
            moment(record.measured_at),
            record.version,
            megabytes(record.used_mb),
            megabytes(record.peak_mb),
            megabytes(record.gpu_vram_mb),
            record.reason,
        )
        for record in records
    ]
    yield Table(("measured", "version", "memory", "peak", "on GPUs", "after"), rows)


def _description(model: ModelInfo) -> Iterable[Block]:
    artefact = model.artefact or {}
    parity, progress = artefact.get("parity") or {}, model.progress
    yield from facts(
        [
            ("model", model.model_id),
            ("name", model.display_name),
            ("description", model.description),
            ("task", model.task_type),
            ("unavailable", model.unavailable),
            ("version", model.version),
            ("versions", ", ".join(model.versions)),
            ("pinned", "upgrades are refused" if model.pinned else ""),
            ("in memory", "kept" if model.keep_loaded else ""),
            ("idle time", _idle(model.idle_ttl)),
            ("status", model.status),
            ("error", model.error),
            ("progress", progress and f"{progress.phase} {progress.fraction or 0:.0%}"),
            ("source", model.source_url or "HuggingFace hub"),
            ("revision", model.revision),
            ("checksum", model.checksum),
            ("engine", _engine(model)),
            *described(artefact.get("ready_made")),
            ("dimension", artefact.get("dimension")),
            ("max tokens", artefact.get("max_seq_length")),
            *candidate_lines(artefact.get("candidates")),
            ("parity", parity and ", ".join(f"{key} {value}" for key, value in parity.items())),
            ("artefact", model.artefact_bytes and megabytes(model.artefact_bytes / _MB)),
            ("memory", model.measured_memory_mb and megabytes(model.measured_memory_mb)),
            ("in Triton", model.triton_name and f"{model.triton_name}, {model.triton_version}"),
            *_facts(model),
            ("created", model.created_at and moment(model.created_at)),
            ("updated", model.updated_at and moment(model.updated_at)),
        ]
    )


def _idle(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 0:
        return "never leaves for being idle"
    return f"leaves after {seconds:g} s without use"


def _engine(model: ModelInfo) -> str | None:
    if model.engine is None or model.engine == model.backend:
        return model.engine
    precision = (model.artefact or {}).get("precision")
    return f"{model.backend} on {model.engine}" + (f", {precision}" if precision else "")


def _facts(model: ModelInfo) -> Iterable[tuple[str, str]]:
    """What is known about the model itself, each with where it was found."""
    for name, fact in (model.facts or {}).items():
        value, file = fact.get("value"), fact.get("file")
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield name.replace("_", " "), f"{shown} ({file or fact.get('source')})"


@click.command()
@click.argument("model_id")
@click.option("--force", is_flag=True, help="Also if it is loaded or locked.")
@client_command
def uninstall(client: ModelMoraClient, out: Output, model_id: str, force: bool) -> None:
    """Remove a model from the catalog, with all its files.

    \b
    Example:
      modelmora uninstall sentence-transformers/all-MiniLM-L6-v2 --force
    """
    try:
        client.delete(model_id, force=force)
    except ModelMoraApiError as error:
        if error.code == "MODEL_ALREADY_LOADED":
            error.message = f"{model_id} is loaded; unload it first, or add --force."
        if error.code == "MODEL_LOCKED":
            error.message = error.message.replace("use force", "add --force")
        raise
    out.result(
        {"model_id": model_id, "uninstalled": True}, lambda _: [f"{model_id} is uninstalled."]
    )
