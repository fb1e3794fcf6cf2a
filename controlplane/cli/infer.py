"""The command infer."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

import click

from controlplane.cli.base import client_command, split_version
from controlplane.cli.infer_input import Given, input_data, labels, parameters
from controlplane.cli.infer_output import Shown
from controlplane.cli.progress import shown_waiting

if TYPE_CHECKING:
    from controlplane.cli.output import Output
    from controlplane.client import ModelMoraClient


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--file", "-f", "file", metavar="FILE", help="One text per line; - is stdin.")
@click.option("--image", "-i", "images", metavar="FILE", multiple=True, help="May be repeated.")
@click.option("--audio", "recordings", metavar="FILE", multiple=True, help="May be repeated.")
@click.option("--context", metavar="TEXT", help="Where the answer to the question is.")
@click.option(
    "--pair",
    "pairs",
    metavar="TEXT",
    multiple=True,
    help="The second text of a pair: what a reranker scores. May be repeated.",
)
@click.option("--messages", metavar="FILE", help="A conversation as JSON; - is stdin.")
@click.option(
    "--input",
    "tensors",
    metavar="NAME=VALUE",
    multiple=True,
    help="Of a model with tensors of its own: JSON, text, or @FILE.",
)
@click.option(
    "--param",
    "-p",
    "params",
    metavar="NAME=VALUE",
    multiple=True,
    help="A parameter; JSON or text.",
)
@click.option(
    "--normalize/--no-normalize", default=None, help="Vectors of length 1. Default: as the model."
)
@click.option("--stream", is_flag=True, help="Show text, or steps, as they come.")
@click.option("--output", "-o", metavar="FILE", help="Write the answer there; - is stdout.")
@click.option("--timeout", type=float, metavar="SECONDS", help="At most 600.")
@click.option("--priority", metavar="PRIORITY", help="critical, high, medium or low.")
@client_command
def infer(
    client: ModelMoraClient,
    out: Output,
    model: str,
    texts: tuple[str, ...],
    file: str | None,
    images: tuple[str, ...],
    recordings: tuple[str, ...],
    context: str | None,
    pairs: tuple[str, ...],
    messages: str | None,
    tensors: tuple[str, ...],
    params: tuple[str, ...],
    normalize: bool | None,
    stream: bool,
    output: str | None,
    timeout: float | None,
    priority: str | None,
) -> None:
    """Run a model on texts, images, recordings; the first request loads it.

    Without any of them the text is read from stdin.

    \b
    Example:
      modelmora infer sentence-transformers/all-MiniLM-L6-v2 "Hello" "Good bye"
      modelmora infer ORG/CHAT "Write a poem" -p max_tokens=200 --stream
      modelmora infer ORG/CLIP --image cat.jpg --json
      modelmora infer ORG/DIFFUSION "a red fox" -p steps=20 -o fox.png
      modelmora infer ORG/QA "Who wrote it?" --context "It was written by Ada."
      modelmora infer ORG/RERANKER "the query" --pair "a passage" --pair "another"
    """
    model_id, version = split_version(model)
    asked = Given(texts, file, images, recordings, context, messages, tensors, pairs)
    data = input_data(asked)
    shown = Shown(out, labels(asked, data), output)
    more = {"version": version, "timeout_seconds": timeout, "priority": priority}
    options = parameters(params, normalize)
    waiting = f"Waiting for {model_id}, which may have to be loaded"
    if stream:
        events = iter(client.stream(model_id, data, options, **more))  # type: ignore[arg-type]
        with shown_waiting(waiting):
            first = list(islice(events, 1))
        shown.events(chain(first, events))
    else:
        with shown_waiting(waiting):
            result = client.infer(model_id, data, options, **more)  # type: ignore[arg-type]
        shown.result(result)
