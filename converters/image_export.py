"""Exports a tower to ONNX and holds it against PyTorch."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from converters import onnx
from converters.engines import Graph as EngineGraph
from converters.errors import ConversionError, ExportFailed, one_line
from converters.verify import measure, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from converters.progress import EventStream
    from converters.verify import Parity

    Pixels = NDArray[np.float32]

_BATCHES = (1, 3, 8)
# Batch sizes that engines are measured with.
_TIMED = (1, 8, 32)


@dataclass(frozen=True)
class Exported:
    """A graph that computes what PyTorch computes; `inputs` are those that it really has."""

    exporter: str
    inputs: tuple[str, ...]
    parity: Parity


def export_until_it_holds(
    graph: onnx.Graph,
    folder: Path,
    compare: Callable[[Path], Parity],
    events: EventStream,
    what: str,
) -> Exported:
    """Write `folder`/model.onnx with the first of `onnx.EXPORTERS` whose graph is right.

    Args:
        compare: holds a model file against PyTorch.
        what: names the graph in progress messages.

    Raises:
        ExportFailed: no exporter's is; with the last one's figures or error.
    """
    failure = ""
    folder.mkdir(exist_ok=True)
    for exporter in onnx.EXPORTERS:
        events.progress("export", 0.0, f"exporting {what} to ONNX ({exporter})")
        try:
            inputs = onnx.export_graph(graph, folder, exporter=exporter)
            events.progress("verify", 0.0, "comparing ONNX Runtime with PyTorch")
            parity = compare(folder / onnx.MODEL_FILE)
        except (ConversionError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - exporters raise anything; the next one may do
            traceback.print_exc()
            failure = f"{type(error).__name__}: {one_line(error)}"
            continue
        if parity.holds:
            events.progress("verify", 1.0, str(parity))
            return Exported(exporter, inputs, parity)
        failure = f"the vectors differ from PyTorch's: {parity}"
    raise ExportFailed(f"The model cannot be exported to ONNX; {failure}.")


class PictureCheck:
    """PyTorch's vectors of some pixel values, computed once; any number of exports is held
    against them, fed with the pixel values that the backend itself gives for the same pictures.

    Raises:
        ExportFailed: the model fails on them, or its own vectors hold what is no number.
    """

    def __init__(self, tower: torch.nn.Module, reference: Pixels, served: Pixels) -> None:
        self._served = served
        try:
            with torch.no_grad():
                parts = [tower(torch.from_numpy(part)).numpy() for part in _batches(reference)]
        except Exception as error:
            traceback.print_exc()
            raise ExportFailed(
                "The model does not take what its image processor gives "
                f"({list(reference.shape[1:])}): {one_line(error)}."
            ) from error
        self._expected = np.concatenate(parts)
        if self._expected.ndim != 2 or not np.isfinite(self._expected).all():
            raise ExportFailed("The model itself gives vectors with values that are no numbers.")

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return int(self._expected.shape[1])

    def compare(self, model_file: Path, threads: int | None) -> Parity:
        """Run the graph on all pictures.

        Raises:
            Exception: whatever ONNX Runtime raises for a graph it cannot load or run.
        """
        session = open_session(model_file, threads)
        name = session.get_inputs()[0].name
        parts = [session.run(None, {name: part})[0] for part in _batches(self._served)]
        return measure(self._expected, np.concatenate(parts))

    def graph(
        self, files: Mapping[str, Path], input_names: Sequence[str], output_name: str
    ) -> EngineGraph:
        """What engines are measured with, see `engines.choose`: all pictures, and batches of
        1, 8 and 32 of them."""
        (name,) = input_names
        parts = zip(_batches(self._served), _batches(self._expected), strict=True)
        many = np.concatenate([self._served] * (-(-max(_TIMED) // len(self._served))))
        return EngineGraph(
            files=files,
            input_names=input_names,
            output_names=[output_name],
            timed={size: {name: many[:size]} for size in _TIMED},
            checked=[({name: given}, {output_name: expected}) for given, expected in parts],
        )


def _batches(pixels: Pixels) -> Sequence[Pixels]:
    """Of several sizes, so that a batch size baked into a graph is seen."""
    parts = np.split(pixels, np.cumsum(_BATCHES))
    return [part for part in parts if len(part)]


def figures(parity: Parity, counted: str) -> dict[str, Any]:
    """A parity as the manifest holds it."""
    return {
        counted: parity.texts,
        "min_cosine": round(parity.min_cosine, 7),
        "max_abs_diff": float(f"{parity.max_abs_diff:.1e}"),
    }
