"""Text models with a head (classification, question answering): loaded, exported, compared."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from converters import exporting, loading, onnx
from converters.engines import Chosen, Graph, choose
from converters.errors import ArtifactNotAccessible, ExportFailed, InsufficientDisk
from converters.specs import SentenceModel, TransformerSpec
from converters.tokenization import (
    TOKENIZER_FILE,
    Tokenization,
    encode,
    open_tokenizer,
    write_tokenizer,
)
from converters.verify import TIMED_TOKENS, open_session, timed_texts, verification_batches
from converters.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from converters.conversion import Conversion
    from converters.weights import Weights

# Texts are cut here for the comparison: attention costs the square of the length.
_LONGEST = 600


class Head(nn.Module):
    """A transformers model whose arguments and results are plain tensors, in order."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """INT64 [batch, sequence] each in; the outputs, FP32, in the order they were named."""
        found = self.model(**dict(zip(self._inputs, given, strict=True)), return_dict=True)
        return tuple(found[name] for name in self._outputs)


class LastEndHead(Head):
    """A classifier of an encoder-decoder: it reads the decoder at the text's last end token.

    As transformers' own (BartForSequenceClassification), which gathers all end tokens of a batch
    and so refuses one whose texts have different numbers of them: pairs beside single texts, or a
    text in which somebody wrote `</s>`.
    """

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `Head.forward`; the only output is `logits` [batch, labels]."""
        named = dict(zip(self._inputs, given, strict=True))
        ids, model = named["input_ids"], cast("Any", self.model)
        if hasattr(model, "transformer"):  # T5 and its kin
            shifted = model._shift_right(ids)
            hidden = model.transformer(**named, decoder_input_ids=shifted, return_dict=True)[0]
        else:
            hidden = model.model(**named, return_dict=True)[0]
        places = torch.arange(ids.shape[1], device=ids.device)
        ends = torch.where(ids == model.config.eos_token_id, places, 0)
        last = ends.max(dim=1).values.reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return (model.classification_head(hidden.gather(1, last).squeeze(1)),)


@dataclasses.dataclass(frozen=True)
class TextHead:
    """A loaded model, ready to be exported.

    Attributes:
        axes: the outputs' names, each with its open dimensions.
    """

    head: Head
    config: Any
    tokenizer: Any
    tokenization: Tokenization
    weights: Weights
    axes: dict[str, dict[int, str]]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.head.parameters())


def load(conversion: Conversion, kind: str, axes: dict[str, dict[int, str]]) -> TextHead:
    """Load the source's model and tokenizer, and write `output`/tokenizer.json.

    Args:
        kind: transformers' class, e.g. `AutoModelForSequenceClassification`.
        axes: see `TextHead`.

    Raises:
        ConversionError: a file is missing or damaged, or the model is not supported.
    """
    import transformers

    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    weights = find_weights(conversion.source, allow_pickle=conversion.allow_pickle)
    require_space(conversion.output, weights)
    spec, trusted = TransformerSpec(conversion.source), conversion.trusted
    classifies = kind == "AutoModelForSequenceClassification"
    config = loading.load_config(spec, trusted=trusted, encoder_decoder=classifies)
    tokenizer = loading.load_tokenizer(SentenceModel(spec, ()), trusted=trusted)
    if config.pad_token_id is None:  # decoders look for their last token by it
        config.pad_token_id = tokenizer.pad_token_id
    automatic = getattr(transformers, kind)
    model = loading.load_model(automatic, conversion.source, config, weights, trusted=trusted)
    inputs = loading.transformer_inputs(model, tokenizer)
    limit = loading.max_seq_length(spec, config, tokenizer, model)
    texts = [text for batch in verification_batches(limit) for text in batch]
    write_tokenizer(tokenizer, conversion.source, conversion.output, texts=texts)
    pad = next(n for n in (tokenizer.pad_token_id, config.pad_token_id, 0) if n is not None)
    tokenization = Tokenization(
        input_names=inputs,
        max_seq_length=limit,
        pad_token_id=pad,
        pad_token_type_id=tokenizer.pad_token_type_id,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
    reads_end = config.is_encoder_decoder and hasattr(model, "classification_head")
    head = (LastEndHead if reads_end else Head)(model, inputs, tuple(axes)).eval()
    return TextHead(head, config, tokenizer, tokenization, weights, axes)


def require_space(output: Path, weights: Weights) -> None:
    """Raises InsufficientDisk unless the export and the exporter's own file fit."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    needed = weights.elements * 4 * 2 + 32 * 2**20  # 4 bytes per number in each
    if needed > (free := shutil.disk_usage(folder).free):
        raise InsufficientDisk(str(folder), free, needed)


@dataclasses.dataclass(frozen=True)
class Done:
    """An exported head: what it reads, and the engine that is to run it."""

    accepted: exporting.Accepted
    tokenization: Tokenization
    chosen: Chosen


def export(loaded: TextHead, conversion: Conversion) -> Done:
    """Write the graph with the first exporter whose result computes what PyTorch does, and choose
    its engine.

    Raises:
        ExportFailed: no exporter's does, or PyTorch's own outputs are no numbers.
        EngineUnavailable: the engine that was asked for.
    """
    events, output = conversion.events, conversion.output
    events.progress("load", 0.8, f"{loaded.parameters:,} parameters; PyTorch reads the test texts")
    check = _Check(loaded, output / TOKENIZER_FILE)
    events.progress("load", 1.0, "loaded")
    tokenization = loaded.tokenization
    names, pads_left = tokenization.input_names, tokenization.padding_side == "left"
    graph = onnx.Graph(
        module=loaded.head,
        example=onnx.text_example(len(names), pads_left=pads_left),
        inputs={name: {0: "batch", 1: "sequence"} for name in names},
        outputs=loaded.axes,
    )
    accepted = exporting.export_until_it_holds(
        lambda exporter: onnx.export_graph(graph, output, exporter=exporter),
        lambda: check.compare(output / onnx.MODEL_FILE, threads=conversion.threads),
        events,
    )
    chosen = choose_engine(
        conversion, check.graph({"onnx": output / onnx.MODEL_FILE}, accepted.inputs)
    )
    read = dataclasses.replace(tokenization, input_names=accepted.inputs)
    return Done(accepted, read, chosen)


def choose_engine(conversion: Conversion, graph: Graph) -> Chosen:
    """The engine for a graph of logits; the default where cosines say nothing of them.

    Raises:
        EngineUnavailable: the one that was asked for.
    """
    engine, precision = conversion.engine, conversion.precision
    if any(array.shape[-1] == 1 for _, outputs in graph.checked for array in outputs.values()):
        engine, precision = engine or "onnxruntime", precision or "fp32"
    return choose(
        graph,
        engine=engine,
        precision=precision,
        progress=lambda share, what: conversion.events.progress("verify", share, what),
    )


class _Check:
    """PyTorch's outputs for the verification texts, held against a graph's."""

    def __init__(self, loaded: TextHead, tokenizer_file: Path) -> None:
        limit = min(loaded.tokenization.max_seq_length, _LONGEST)
        names = loaded.tokenization.input_names
        short = dataclasses.replace(
            loaded.tokenization,
            max_seq_length=limit,
            input_names=tuple(dict.fromkeys((*names, "attention_mask"))),
        )
        tokenizer = open_tokenizer(tokenizer_file, short)
        timed = dataclasses.replace(short, max_seq_length=min(limit, TIMED_TOKENS))
        # A model may look for the last token that is no padding: every text has one here.
        texts: list[list[Any]] = [
            [text for text in batch if text.strip()] for batch in verification_batches(limit)
        ]
        # Pairs: of these alone has the second text a type of its own.
        texts.append(
            [(first, second) for first, second in zip(texts[-2], texts[-2][1:], strict=False)]
        )
        self._names = tuple(loaded.axes)
        self._per_token = [1 in axes for axes in loaded.axes.values()]
        self._inputs = [encode(tokenizer, batch, short) for batch in texts if batch]
        self._texts = sum(len(batch) for batch in texts)
        model: Any = loaded.head.model
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
        highest = max(int(batch["input_ids"].max()) for batch in self._inputs)
        if rows is not None and highest >= rows:
            raise ArtifactNotAccessible(
                f"The tokenizer does not fit the model: it gives token {highest} of {rows}."
            )
        with torch.no_grad():
            tensors = [[torch.from_numpy(b[name]) for name in names] for b in self._inputs]
            self._found = [[out.numpy() for out in loaded.head(*batch)] for batch in tensors]
        short_tokenizer = open_tokenizer(tokenizer_file, timed)
        self._timed = {
            size: encode(short_tokenizer, timed_texts(size), timed) for size in (1, 8, 32)
        }
        self._expected = self._flat(self._found)
        if not np.isfinite(self._expected).all():
            raise ExportFailed("The model itself gives values that are no numbers.")

    def compare(self, model_file: Path, *, threads: int | None) -> exporting.Agreement:
        session = open_session(model_file, threads)
        wanted = [value.name for value in session.get_inputs()]
        found = [
            session.run(list(self._names), {name: batch[name] for name in wanted})
            for batch in self._inputs
        ]
        return exporting.agreement(self._texts, self._expected, self._flat(found))

    def graph(self, files: Mapping[str, Path], input_names: Sequence[str]) -> Graph:
        """What engines are measured with, see `engines.choose`."""

        def named(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {name: batch[name] for name in input_names}

        return Graph(
            files=files,
            input_names=input_names,
            output_names=self._names,
            timed={size: named(batch) for size, batch in self._timed.items()},
            checked=[
                (named(batch), dict(zip(self._names, found, strict=True)))
                for batch, found in zip(self._inputs, self._found, strict=True)
            ],
        )

    def _flat(self, outputs: list[list[NDArray[Any]]]) -> NDArray[np.float64]:
        """All values that count: those of padding do not."""
        kept = []
        for batch, arrays in zip(self._inputs, outputs, strict=True):
            mask = batch["attention_mask"].astype(bool)
            for array, per_token in zip(arrays, self._per_token, strict=True):
                kept.append((array[mask] if per_token else array).reshape(-1))
        flat: NDArray[np.float64] = np.concatenate(kept).astype(np.float64)
        return flat


def tokens_section(loaded: TextHead, done: Done) -> dict[str, Any]:
    """The manifest's description of graph and tokenizer, as text_embedding has it."""
    tokenization = done.tokenization
    return {
        "model_file": done.chosen.model_file.name,
        "tokenizer_file": TOKENIZER_FILE,
        "input_names": list(tokenization.input_names),
        "output_names": list(loaded.axes),
        "max_seq_length": tokenization.max_seq_length,
        "do_lower_case": False,
        "pad_token_id": tokenization.pad_token_id,
        "pad_token_type_id": tokenization.pad_token_type_id,
        "padding_side": tokenization.padding_side,
        "truncation_side": tokenization.truncation_side,
    }
