"""A graph over tokens with any outputs: what classification and question answering run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from backends.engines import Engine, open_engine
from backends.errors import BackendError, EngineError, RequestAbandoned
from backends.lanes import cost_for, in_lanes
from backends.text_embedding.batching import sub_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.text_embedding.tokens import TextTokenizer

    Row = dict[str, NDArray[Any]] | BackendError


@dataclass(frozen=True)
class TextGraphArtefact:
    """What a manifest says of a graph over tokens and its tokenizer; files by full paths.

    Attributes:
        max_seq_length: tokens, special ones included, beyond which a text is cut.
    """

    model_id: str
    engine: str
    precision: str
    model_file: Path
    tokenizer_file: Path
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    max_seq_length: int
    do_lower_case: bool
    pad_token_id: int
    pad_token_type_id: int
    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]


def text_graph_artefact(
    folder: Path, manifest: Mapping[str, Any], section: Mapping[str, Any]
) -> TextGraphArtefact:
    """Of a backend's section in the manifest; to be called within `manifest.reading`."""
    return TextGraphArtefact(
        model_id=str(manifest["model_id"]),
        engine=str(manifest["engine"]),
        precision=str(manifest["precision"]),
        model_file=folder / section["model_file"],
        tokenizer_file=folder / section["tokenizer_file"],
        input_names=tuple(section["input_names"]),
        output_names=tuple(section["output_names"]),
        max_seq_length=int(section["max_seq_length"]),
        do_lower_case=bool(section["do_lower_case"]),
        pad_token_id=int(section["pad_token_id"]),
        pad_token_type_id=int(section["pad_token_type_id"]),
        padding_side=section["padding_side"],
        truncation_side=section["truncation_side"],
    )


def open_text_graph(artefact: TextGraphArtefact, *, device_id: int = 0) -> Engine:
    """Open the artefact's graph with its engine.

    Raises:
        EngineError: it cannot be opened.
    """
    return open_engine(
        artefact.engine,
        artefact.model_file,
        input_names=artefact.input_names,
        output_names=artefact.output_names,
        precision=artefact.precision,
        device_id=device_id,
    )


def run_rows(
    engine: Engine,
    tokenizer: TextTokenizer,
    encodings: Sequence[Any],
    owners: Sequence[int],
    abandoned: Callable[[int], bool] = lambda _: False,
) -> list[Row]:
    """Run encodings in sub-batches of like length.

    Args:
        owners: per encoding, the number of the request it belongs to.
        abandoned: asked with that number before each sub-batch with a part of it.

    Returns:
        Per encoding the outputs by name, without batch dimension (those that go by token as long
        as the sub-batch was padded), or what went wrong.
    """
    rows: list[Row] = [EngineError("It did not run.")] * len(encodings)
    cost = cost_for(engine.cost, len(owners), len(set(owners)))
    batches = sub_batches([len(item) for item in encodings], cost)

    def wanted() -> Iterator[list[int]]:
        for batch in batches:
            gone = {owner for owner in {owners[i] for i in batch} if abandoned(owner)}
            for index in batch:
                if owners[index] in gone:
                    rows[index] = RequestAbandoned("The request was cancelled.")
            left = [index for index in batch if owners[index] not in gone]
            if left:
                yield left

    def run(places: list[int]) -> None:
        found = _run(engine, tokenizer, [encodings[index] for index in places])
        for index, row in zip(places, found, strict=True):
            rows[index] = row

    in_lanes(wanted(), run, min(cost.lanes, len(batches)))
    return rows


def _run(engine: Engine, tokenizer: TextTokenizer, encodings: Sequence[Any]) -> Sequence[Row]:
    try:
        outputs = engine.run(tokenizer.arrays(encodings))
    except EngineError as failure:
        return [failure] * len(encodings)
    return [
        {name: values[place] for name, values in outputs.items()} for place in range(len(encodings))
    ]
