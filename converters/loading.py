"""Loads a repository's transformer and tokenizer through transformers, in float32, offline.

Code of the repository runs only where the caller says `trusted`, and then only what lies in its
folder: `auto_map` may lead to no other repository.
"""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from converters.errors import ArtifactNotAccessible, ExportFailed, one_line
from converters.sentence_model import read_json
from converters.tokenization import require_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.specs import SentenceModel, TransformerSpec
    from converters.weights import Weights

# Where neither tokenizer nor model limits the length (T5, XLNet): one text must not take all
# memory, which grows with the square of its length.
UNLIMITED_LENGTH = 8192

# Encoder-decoders of which sentence-transformers takes the encoder.
_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Position tables, by the names that transformers' models give them.
_POSITION_TABLES = ("position_embeddings", "wpe")


def load_config(
    spec: TransformerSpec, *, trusted: bool = False, encoder_decoder: bool = False
) -> Any:
    """transformers' configuration of a folder, key-value caches switched off.

    Args:
        encoder_decoder: whether any of these will do; else only those whose encoder is an embedder.

    Raises:
        ArtifactNotAccessible: config.json missing or damaged.
        ExportFailed: an architecture that transformers lacks, needs its own code, is quantized,
            takes more than text, or is an adapter.
    """
    if (spec.folder / "adapter_config.json").exists():
        raise ExportFailed("The model is a PEFT adapter; merge it into its base model first.")
    raw = read_json(spec.folder / "config.json")
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ArtifactNotAccessible("config.json names no model_type.")
    _refuse(raw, trusted=trusted)
    options = spec.config_options | {"trust_remote_code": trusted, "local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(spec.folder, **options)
    except Exception as error:
        raise ArtifactNotAccessible(f"config.json is not valid: {one_line(error)}.") from error
    if config.is_encoder_decoder and not encoder_decoder and config.model_type not in _ENCODERS:
        raise ExportFailed(f"The encoder-decoder {config.model_type!r} is not supported.")
    config.use_cache = False
    return config


def _refuse(raw: Mapping[str, Any], *, trusted: bool) -> None:
    kind, code = raw["model_type"], raw.get("auto_map")
    if code and trusted and "--" in json.dumps(code):
        raise ExportFailed("auto_map in config.json names code of another repository.")
    if kind not in CONFIG_MAPPING and not (code and trusted):
        why = (
            "brings its own code, which was not trusted (--trust-remote-code)"
            if code
            else f"is unknown to transformers {transformers.__version__}"
        )
        raise ExportFailed(f"The architecture {kind!r} of config.json {why}.")
    if "quantization_config" in raw:
        raise ExportFailed("The model's weights are quantized; use the repository of the original.")
    for part in ("vision_config", "audio_config"):
        if part in raw:
            raise ExportFailed(f"The architecture {kind!r} takes more than text ({part}).")


def load_tokenizer(model: SentenceModel, *, trusted: bool = False) -> Any:
    """transformers' fast tokenizer of the model.

    Raises:
        ArtifactNotAccessible: none there, or damaged.
        ExportFailed: it has a chat template that sentence-transformers would apply.
    """
    spec = model.transformer
    require_vocabulary(spec.folder)
    options = spec.tokenizer_options | {"trust_remote_code": trusted, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(spec.folder, **options)
    except Exception as error:
        raise ArtifactNotAccessible(f"The tokenizer cannot be read: {one_line(error)}.") from error
    if not tokenizer.is_fast:
        raise ExportFailed(f"{type(tokenizer).__name__} has no fast version, which serving needs.")
    if not model.described and tokenizer.chat_template is not None:
        # sentence-transformers would wrap every text in the template: a chat model, no embedding.
        raise ExportFailed(
            "The repository has a chat template and no modules.json: it is not an embedding model."
        )
    return tokenizer


def load_transformer(
    spec: TransformerSpec, config: Any, weights: Weights, *, trusted: bool = False
) -> nn.Module:
    """The model in float32 with plain ("eager") attention, ready to be traced.

    Eager attention everywhere: some models (MPNet) have no other, and ONNX Runtime runs its
    graph as fast as that of scaled_dot_product_attention.

    Raises:
        ArtifactNotAccessible: the weights cannot be read, or lack parts of the architecture.
        ExportFailed: transformers has no such model.
    """
    kind: Any = transformers.AutoModel
    if config.model_type in _ENCODERS:
        kind = getattr(transformers, _ENCODERS[config.model_type])
    pooler_used = "pooler_output" in spec.output_path
    return load_model(kind, spec.folder, config, weights, trusted=trusted, pooler_used=pooler_used)


def load_model(
    kind: Any,
    folder: Path,
    config: Any,
    weights: Weights,
    *,
    trusted: bool = False,
    pooler_used: bool = True,
) -> nn.Module:
    """A model of one of transformers' classes, as `load_transformer`.

    Args:
        kind: the class, which may be an `AutoModelFor…`.
        pooler_used: False where nobody minds a pooler that the weights lack.

    Raises:
        ArtifactNotAccessible: as `load_transformer`.
    """
    model, missing = read_model(kind, folder, config, weights, trusted=trusted)
    _require_complete(missing, weights.names, pooler_used=pooler_used)
    loaded: nn.Module = model.eval()
    return loaded


def read_model(
    kind: Any, folder: Path, config: Any, weights: Weights, *, trusted: bool
) -> tuple[Any, set[str]]:
    """A model in float32 with plain attention, and the names of what its weights lack.

    Raises:
        ArtifactNotAccessible: they cannot be read.
    """
    try:
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=weights.safe,
            trust_remote_code=trusted,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ArtifactNotAccessible(
            f"{weights.names} and config.json do not give a model: {one_line(error)}."
        ) from error
    return model, report["missing_keys"]


def _require_complete(missing: set[str], names: str, *, pooler_used: bool) -> None:
    # transformers fills what is missing with random numbers, different at every install. The
    # pooler is often left out of repositories and takes no part in token vectors.
    needed = sorted(key for key in missing if pooler_used or "pooler." not in key)
    if needed:
        raise ArtifactNotAccessible(
            f"{names} lacks {len(needed)} weights that config.json asks for, such as {needed[0]}."
        )


def transformer_inputs(model: nn.Module, tokenizer: Any) -> tuple[str, ...]:
    """Those of input_ids, attention_mask and token_type_ids that both model and tokenizer know."""
    accepted = inspect.signature(model.forward).parameters
    given = tokenizer.model_input_names
    return tuple(name for name in _INPUTS if name in accepted and name in given)


def max_seq_length(spec: TransformerSpec, config: Any, tokenizer: Any, model: nn.Module) -> int:
    """Tokens at which texts are cut, as sentence-transformers derives it; never beyond the
    positions that the model has, where sentence-transformers would fail on long texts.
    """
    limits = [tokenizer.model_max_length if spec.max_seq_length is None else spec.max_seq_length]
    if spec.max_seq_length is None and "model_max_length" not in spec.tokenizer_options:
        positions = getattr(config, "max_position_embeddings", -1)
        limits += [positions] if isinstance(positions, int) and positions > 0 else []
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES:
            # RoBERTa counts positions from the one after its padding id.
            skipped = 0 if part.padding_idx is None else part.padding_idx + 1
            limits.append(part.num_embeddings - skipped)
    length = int(min(limits))
    return length if length < 10**9 else UNLIMITED_LENGTH
