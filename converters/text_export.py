"""A sentence encoder becomes a graph that is proven right, and gets the engine that serves it."""

from __future__ import annotations

import dataclasses
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converters import onnx, torchscript
from converters.engines import Chosen, choose
from converters.errors import ConversionError, ExportFailed, one_line
from converters.tokenization import TOKENIZER_FILE
from converters.verify import Check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from converters.progress import EventStream
    from converters.text_embedding import Loaded, Options
    from converters.tokenization import Tokenization
    from converters.verify import Parity


@dataclass(frozen=True)
class TextExport:
    """An accepted export.

    Attributes:
        exporter: one of `onnx.EXPORTERS`, or `torchscript.EXPORTER`.
        parity: of the graph itself, in fp32.
        tokenization: with the inputs that the graph kept.
    """

    exporter: str
    parity: Parity
    dimension: int
    tokenization: Tokenization
    chosen: Chosen


def export(loaded: Loaded, output: Path, events: EventStream, options: Options) -> TextExport:
    """Export until one passes verification, and choose its engine.

    The order is that of `onnx.EXPORTERS`; tracing comes last, as its stub has to import torch, or
    alone, where its engine was asked for.

    Raises:
        ExportFailed: none does, with the last one's figures or error; or the engine asked for is
            not to be had.
    """
    events.progress("load", 0.8, f"{loaded.parameters:,} parameters; PyTorch embeds the test texts")
    check = Check(loaded.encoder, output / TOKENIZER_FILE, loaded.tokenization)
    events.progress("load", 1.0, "loaded")
    attempts = _Attempts(loaded, output, check, events, options)
    exporter, parity, inputs = attempts.first_that_holds()
    kind = "torchscript" if exporter == torchscript.EXPORTER else "onnx"
    file = torchscript.MODEL_FILE if kind == "torchscript" else onnx.MODEL_FILE
    chosen = choose(
        check.graph({kind: output / file}, inputs, onnx.OUTPUT_NAME),
        engine=options.engine,
        precision=options.precision,
        progress=lambda share, what: events.progress("verify", 0.5 + share / 2, what),
    )
    tokenization = dataclasses.replace(loaded.tokenization, input_names=inputs)
    return TextExport(exporter, parity, check.dimension, tokenization, chosen)


class _Attempts:
    """The exporters, one after another."""

    def __init__(
        self, loaded: Loaded, output: Path, check: Check, events: EventStream, options: Options
    ) -> None:
        self._loaded = loaded
        self._output = output
        self._check = check
        self._events = events
        self._options = options

    def first_that_holds(self) -> tuple[str, Parity, tuple[str, ...]]:
        """The exporter, how close its graph comes to PyTorch, and the graph's inputs."""
        failure = ""
        for exporter in self._exporters():
            try:
                parity, inputs = self._attempt(exporter)
            except (ConversionError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - exporters raise anything; the next may do
                traceback.print_exc()
                failure = f"{type(error).__name__}: {one_line(error)}"
                continue
            if parity.holds:
                return exporter, parity, inputs
            failure = f"the vectors differ from PyTorch's: {parity}"
        raise ExportFailed(f"The model cannot be exported; {failure}.")

    def _exporters(self) -> tuple[str, ...]:
        engine = self._options.engine
        if engine == "torchscript":
            return (torchscript.EXPORTER,)
        return onnx.EXPORTERS if engine else (*onnx.EXPORTERS, torchscript.EXPORTER)

    def _attempt(self, exporter: str) -> tuple[Parity, tuple[str, ...]]:
        names = self._loaded.tokenization.input_names
        if exporter == torchscript.EXPORTER:
            return self._trace(names), names
        self._events.progress("export", 0.0, f"exporting to ONNX ({exporter})")
        inputs = onnx.export(
            self._loaded.encoder,
            names,
            self._output,
            exporter=exporter,
            pads_left=self._pads_left,
            external_data_above=self._options.external_data_above or onnx.EXTERNAL_DATA_ABOVE,
        )
        self._events.progress("verify", 0.0, "comparing ONNX Runtime with PyTorch")
        file, threads = self._output / onnx.MODEL_FILE, self._options.threads
        return self._check.compare(file, threads=threads, progress=self._comparing), inputs

    def _trace(self, names: tuple[str, ...]) -> Parity:
        self._events.progress("export", 0.0, "tracing with TorchScript")
        onnx.remove(self._output)
        example = onnx.example(len(names), self._pads_left)
        module = torchscript.trace(self._loaded.encoder, example, self._output)
        self._events.progress("verify", 0.0, "comparing TorchScript with PyTorch")
        return self._check.compare_module(module, progress=self._comparing)

    @property
    def _pads_left(self) -> bool:
        return self._loaded.tokenization.padding_side == "left"

    @property
    def _comparing(self) -> Callable[[float], None]:
        return lambda share: self._events.progress("verify", share / 2, "comparing")
