"""Engines execute an artefact's graph. One module per engine, imported only when it is used.

An engine is an entry point of the group `modelmora.engines`, by the name that manifests use: a
function with the signature of `OpenGraph` (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from backends import plugins
from backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

GROUP = "modelmora.engines"


@dataclass(frozen=True)
class BatchCost:
    """How an engine's run time grows with a batch, for cutting requests into sub-batches.

    A run takes about `call_tokens + rows x length`, in units of one token's time.

    Attributes:
        max_tokens: padded tokens (rows x length) beyond which a batch gains nothing.
        call_tokens: fixed cost of one run.
        round_length: lengths are padded up to a multiple of it, by engines to which every new
            shape is a cost of its own.
        lanes: runs that go on at a time where there are so many; `run` may then be called from
            that many threads at once.
    """

    max_tokens: int
    call_tokens: int
    round_length: int = 1
    lanes: int = 1

    @property
    def wide(self) -> BatchCost:
        """The same for one run at a time, which has the threads of all lanes."""
        return replace(self, lanes=1, max_tokens=self.max_tokens * self.lanes)

    def padded(self, length: int) -> int:
        """Tokens that a text of `length` tokens takes; an empty one takes one at least."""
        return -(-max(1, length) // self.round_length) * self.round_length


class Engine(Protocol):
    """An opened graph: named tensors in, named tensors out."""

    @property
    def device(self) -> str:
        """Where it runs: `cpu` or `cuda:N`."""

    @property
    def cost(self) -> BatchCost:
        """What a batch costs on this device."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once: the outputs by name, floating-point ones as FP32; batch dimension first.

        Raises:
            EngineError: with the engine's reason.
        """


class OpenGraph(Protocol):
    """What an engine's entry point is."""

    def __call__(
        self,
        model_file: Path,
        input_names: Sequence[str],
        output_names: Sequence[str],
        *,
        precision: str,
        device_id: int,
    ) -> Engine:
        """Open a graph; see `open_engine`."""


# The model in Triton that runs the graph for this process, if one does: see `native.py`.
_members: list[str] = []


def use_member(name: str | None) -> None:
    """Have `open_engine` open the graph in Triton instead of in this process."""
    _members[:] = [name] if name else []


def open_engine(
    name: str,
    model_file: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    precision: str = "fp32",
    device_id: int = 0,
) -> Engine:
    """Open a graph with the engine of that name. A stub imports one engine only: each costs it
    tens of megabytes.

    Args:
        name: the manifest's `engine`.
        precision: the manifest's: what the engine computes in, fp32, bf16, fp16 or int8.
        device_id: which CUDA device to use, where one works.

    Raises:
        EngineError: unknown engine, or the graph cannot be opened or is not as described.
    """
    if _members:
        from backends.engines.native import NativeEngine

        return NativeEngine(_members[0], output_names)
    try:
        entry = plugins.find(GROUP, name)
    except LookupError as error:
        raise EngineError(f"Unknown engine {name!r}: {error}.") from error
    try:
        open_graph = cast("OpenGraph", entry.load())
    except ImportError as error:
        raise EngineError(f"The engine {name} cannot be imported: {error}.") from error
    return open_graph(
        model_file, input_names, output_names, precision=precision, device_id=device_id
    )


def require_names(
    file_name: str,
    inputs: set[str],
    outputs: set[str],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> None:
    """For engines: hold a graph's `inputs` and `outputs` against those that its manifest names.

    Raises:
        EngineError: it takes others, or lacks an output.
    """
    if inputs != set(input_names):
        raise EngineError(
            f"{file_name} takes {', '.join(sorted(inputs))}, "
            f"but its manifest says {', '.join(sorted(input_names))}."
        )
    for name in output_names:
        if name not in outputs:
            raise EngineError(f"{file_name} has no output {name!r}.")
