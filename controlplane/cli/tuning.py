"""`modelmora tune`: measure a model's engines again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlplane.cli.base import client_command, split_version
from controlplane.cli.engines import candidate_lines, engine_options
from controlplane.cli.following import shown_installation
from controlplane.cli.output import Block, Output, facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.client import ModelMoraClient
    from controlplane.client_types import ModelInfo


@click.command()
@click.argument("model", metavar="MODEL_ID[@VERSION]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop waiting after this long.")
@engine_options
@client_command
def tune(
    client: ModelMoraClient,
    out: Output,
    model: str,
    timeout: float | None,
    engine: str | None,
    precision: str | None,
) -> None:
    """Measure again which engine serves a model fastest.

    For a machine that changed, or to name an engine. The model is served as before meanwhile; if
    it is in memory, it is loaded anew at the end.

    \b
    Example:
      modelmora tune sentence-transformers/all-MiniLM-L6-v2
      modelmora tune sentence-transformers/all-MiniLM-L6-v2 --precision int8
    """
    model_id, version = split_version(model)
    with shown_installation(client, out, model_id, set()) as on_progress:
        tuned = client.tune(
            model_id, version, on_progress, timeout, engine=engine, precision=precision
        )
    out.result(tuned, _tuned)


def _tuned(model: ModelInfo) -> Iterable[Block]:
    artefact = model.artefact or {}
    precision = artefact.get("precision", "")
    yield f"{model.model_id}@{model.version} runs on {model.engine} {precision}".rstrip() + "."
    yield from facts(list(candidate_lines(artefact.get("candidates"))))
