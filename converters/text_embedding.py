"""Task txt2embed: a sentence-transformers or transformers repository becomes an artefact."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

from converters.conversion import fresh_output
from converters.errors import InsufficientDisk
from converters.sentence_model import read_sentence_model
from converters.specs import PoolingSpec
from converters.weights import find_weights

if TYPE_CHECKING:
    from pathlib import Path

    from converters.conversion import Conversion
    from converters.manifest import Identity
    from converters.progress import EventStream
    from converters.sentence_layers import SentenceEncoder
    from converters.specs import SentenceModel
    from converters.tokenization import Tokenization
    from converters.weights import Weights

_MB = 2**20


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Everything read from the source, ready to be exported."""

    model: SentenceModel
    weights: Weights
    encoder: SentenceEncoder
    tokenization: Tokenization
    parameters: int


@dataclasses.dataclass(frozen=True)
class Options:
    """How to export; see `convert_text_embedding`."""

    threads: int | None = None
    engine: str | None = None
    precision: str | None = None
    external_data_above: int | None = None


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the task txt2embed; see `convert_text_embedding`."""
    return convert_text_embedding(
        conversion.source,
        conversion.output,
        conversion.identity,
        conversion.events,
        allow_pickle=conversion.allow_pickle,
        trusted=conversion.trusted,
        threads=conversion.threads,
        engine=conversion.engine,
        precision=conversion.precision,
    )


def convert_text_embedding(
    source: Path,
    output: Path,
    identity: Identity,
    events: EventStream,
    *,
    allow_pickle: bool = False,
    trusted: bool = False,
    threads: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    external_data_above: int | None = None,
) -> dict[str, Any]:
    """Convert `source` into `output`, which is created; the manifest is returned.

    The graph computes what `SentenceTransformer(source).encode` computes: pooling, Dense,
    Normalize and the rest of modules.json are inside. The export is compared with PyTorch and
    refused when it differs.

    Args:
        trusted: import the Python files that config.json names, out of `source` only.
        threads: for torch and ONNX Runtime; None leaves it to them.
        engine, precision: what is to serve it; None leaves the choice to measurement.
        external_data_above: bytes of weights that stay in model.onnx; None for protobuf's limit.

    Raises:
        ConversionError: its subclass tells why; `output` is gone then, unless it existed before.
    """
    model = read_sentence_model(source)
    weights = find_weights(model.transformer.folder, allow_pickle=allow_pickle)
    _require_space(output, weights)
    with fresh_output(output):
        events.progress("load", 0.0, "loading torch and transformers")
        loaded = load(
            model, weights, output, allow_pickle=allow_pickle, trusted=trusted, threads=threads
        )
        options = Options(threads, engine, precision, external_data_above)
        return _export(loaded, output, identity, events, options)


def _require_space(output: Path, weights: Weights) -> None:
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    # The exporter's own file and ours exist at the same time; 4 bytes per number in each.
    needed, free = weights.elements * 4 * 2 + 32 * _MB, shutil.disk_usage(folder).free
    if needed > free:
        raise InsufficientDisk(str(folder), free, needed)


def load(
    model: SentenceModel,
    weights: Weights,
    output: Path,
    *,
    allow_pickle: bool,
    threads: int | None,
    trusted: bool = False,
) -> Loaded:
    """Build the encoder from the source's files and write `output`/tokenizer.json.

    Raises:
        ConversionError: a file is missing or damaged, or the model is not supported.
    """
    import torch

    from converters import loading
    from converters.sentence_layers import SentenceEncoder, build_layers

    if threads:
        torch.set_num_threads(threads)
    spec = model.transformer
    config = loading.load_config(spec, trusted=trusted)
    hf_tokenizer = loading.load_tokenizer(model, trusted=trusted)
    transformer = loading.load_transformer(spec, config, weights, trusted=trusted)
    inputs = loading.transformer_inputs(transformer, hf_tokenizer)
    prompt_length = _prompt_length(hf_tokenizer, model.default_prompt)
    model = _with_usable_prompts(model)
    limit = loading.max_seq_length(spec, config, hf_tokenizer, transformer)
    tokenization = _tokenization(model, hf_tokenizer, inputs, limit)
    _write_tokenizer(hf_tokenizer, model, tokenization, output)
    layers = build_layers(
        model.layers,
        pads_left=tokenization.padding_side == "left",
        prompt_length=prompt_length,
        allow_pickle=allow_pickle,
    )
    encoder = SentenceEncoder(
        transformer, spec, layers, transformer_inputs=inputs, truncate_dim=model.truncate_dim
    )
    # The exporter leaves the whole in the mode it finds; with dropout on, nothing would repeat.
    encoder.eval()
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return Loaded(model, weights, encoder, tokenization, parameters)


def _tokenization(
    model: SentenceModel, hf_tokenizer: Any, inputs: tuple[str, ...], limit: int
) -> Tokenization:
    from converters.tokenization import Tokenization

    pad = hf_tokenizer.pad_token_id
    if pad is None:  # padding is masked, so any id will do; sentence-transformers cannot pad here
        pad = hf_tokenizer.eos_token_id or 0
    return Tokenization(
        # Pooling needs the mask also where the transformer does not.
        input_names=tuple(dict.fromkeys(("input_ids", "attention_mask", *inputs))),
        max_seq_length=limit,
        pad_token_id=pad,
        pad_token_type_id=hf_tokenizer.pad_token_type_id,
        padding_side=hf_tokenizer.padding_side,
        truncation_side=hf_tokenizer.truncation_side,
        do_lower_case=model.transformer.do_lower_case,
        prompt=model.default_prompt,
    )


def _write_tokenizer(
    hf_tokenizer: Any, model: SentenceModel, tokenization: Tokenization, output: Path
) -> None:
    from converters.tokenization import write_tokenizer
    from converters.verify import verification_batches

    batches = verification_batches(tokenization.max_seq_length)
    write_tokenizer(
        hf_tokenizer,
        model.transformer.folder,
        output,
        texts=[text for batch in batches for text in batch],
    )


def _prompt_length(hf_tokenizer: Any, prompt: str) -> int:
    """Tokens of the prompt, special ones before it included, as sentence-transformers counts."""
    if not prompt:
        return 0
    ids = hf_tokenizer(prompt)["input_ids"]
    return len(ids) - (1 if ids[-1] in hf_tokenizer.all_special_ids else 0)


def _with_usable_prompts(model: SentenceModel) -> SentenceModel:
    """Without the prompts that the graph could not leave out of the pooling.

    How many tokens to leave out is fixed in the graph, for the default prompt.
    """
    pools = [layer for layer in model.layers if isinstance(layer, PoolingSpec)]
    if all(layer.include_prompt for layer in pools):
        return model
    name = model.default_prompt_name
    return dataclasses.replace(model, prompts={name: model.default_prompt} if name else {})


def _export(
    loaded: Loaded, output: Path, identity: Identity, events: EventStream, options: Options
) -> dict[str, Any]:
    from converters import onnx
    from converters.manifest import Exported, text_embedding_manifest, write_manifest
    from converters.text_export import export
    from converters.tokenization import TOKENIZER_FILE

    done = export(loaded, output, events, options)
    events.progress("write", 0.0, "writing the manifest")
    facts = Exported(
        parity=done.parity,
        dimension=done.dimension,
        parameters=loaded.parameters,
        dtype=loaded.weights.dtype or "unknown",
        opset=onnx.OPSET if done.exporter in onnx.EXPORTERS else None,
        exporter=done.exporter,
        chosen=done.chosen,
        tokenizer_file=TOKENIZER_FILE,
    )
    manifest = text_embedding_manifest(identity, loaded.model, done.tokenization, facts)
    complete = write_manifest(output, manifest)
    events.progress("write", 1.0, "artefact complete")
    return complete
