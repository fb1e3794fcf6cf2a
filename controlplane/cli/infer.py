"""The command infer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.cli.base import client_command, split_version
from controlplane.cli.output import Block, Output, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import InferResult

_SHOWN_NUMBERS = 4
_SHOWN_CHARACTERS = 40


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@click.argument("texts", metavar="TEXT...", nargs=-1)
@click.option("--file", "-f", "file", metavar="FILE", help="One text per line; - is stdin.")
@click.option(
    "--normalize/--no-normalize", default=None, help="Vectors of length 1. Default: as the model."
)
@click.option("--timeout", type=float, metavar="SECONDS", help="At most 600.")
@click.option("--priority", metavar="PRIORITY", help="critical, high, medium or low.")
@client_command
def infer(
    client: ModelMoraClient,
    out: Output,
    model: str,
    texts: tuple[str, ...],
    file: str | None,
    normalize: bool | None,
    timeout: float | None,
    priority: str | None,
) -> None:
    """Run a model on texts; the first request loads it.

    \b
    Example:
      modelmora infer sentence-transformers/all-MiniLM-L6-v2 "Hello" "Good bye"
      modelmora infer sentence-transformers/all-MiniLM-L6-v2 -f texts.txt --json
    """
    model_id, version = split_version(model)
    every = [*texts, *(_lines(file) if file is not None else ())]
    if not every:
        raise click.UsageError("Nothing to do: give a TEXT or --file FILE.")
    parameters = {} if normalize is None else {"normalize": normalize}
    result = client.infer(
        model_id,
        {"text": every},
        parameters,
        version=version,
        timeout_seconds=timeout,
        priority=priority,
    )
    out.result(result, lambda answer: _embeddings(every, answer))


def _lines(file: str) -> list[str]:
    """The file's lines, blank ones left out.

    Raises:
        click.UsageError: it cannot be read or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise click.UsageError(f"--file {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--file {file}: not UTF-8 text ({error.reason}).") from error
    return [line.rstrip("\r") for line in lines if line.strip()]


def _embeddings(texts: Sequence[str], result: InferResult) -> Iterable[Block]:
    from controlplane.client_operations import vectors

    found = vectors(result)
    rows = [
        (_shortened(text), str(len(vector)), _first_numbers(vector))
        for text, vector in zip(texts, found, strict=True)
    ]
    yield Table(("text", "dimension", "embedding"), rows)
    times = result.metadata
    if times.total_time_ms is not None:
        yield f"{result.model_id}@{result.version}, {times.total_time_ms:.1f} ms"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _first_numbers(vector: Sequence[float]) -> str:
    numbers = ", ".join(f"{number:+.4f}" for number in vector[:_SHOWN_NUMBERS])
    return f"[{numbers}, …]" if len(vector) > _SHOWN_NUMBERS else f"[{numbers}]"
