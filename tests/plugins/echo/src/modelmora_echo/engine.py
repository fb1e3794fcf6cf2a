"""An engine: opens a graph file, runs it on named arrays. This one puts rows into another order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from backends.engines import BatchCost
from backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class BackwardsEngine:
    """The opened graph."""

    device = "cpu"
    cost = BatchCost(max_tokens=1024, call_tokens=1)

    def __init__(self, input_name: str, output_name: str) -> None:
        self._input, self._output = input_name, output_name

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Each row of the input backwards; batch dimension first."""
        return {self._output: inputs[self._input][:, ::-1]}


def open_graph(
    model_file: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    precision: str,
    device_id: int,
) -> BackwardsEngine:
    """Open a graph; the signature is `backends.engines.OpenGraph`'s.

    Raises:
        EngineError: it cannot be opened, or not as asked.
    """
    if precision != "fp32":
        raise EngineError(f"echo_engine computes in fp32 only, not in {precision}.")
    try:
        order = json.loads(model_file.read_text(encoding="utf-8"))["order"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{model_file.name} is no graph of echo_engine: {error!r}.") from error
    if order != "backwards":
        raise EngineError(f"{model_file.name} wants the order {order!r}.")
    return BackwardsEngine(input_names[0], output_names[0])
