"""What both converters of text generators share: reading the source, precision, loading, manifest.

Nothing is exported: the model's own files are packaged, and its backend runs transformers.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from converters.errors import ArtifactNotAccessible, EngineUnavailable, ExportFailed, one_line
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from converters.conversion import Conversion
    from converters.manifest import Identity
    from converters.weights import Weights

ENGINE = "transformers"
PRECISIONS = ("fp32", "bf16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How much faster bf16 must be to be worth the digits it loses.
_WORTH = 1.2
_TIMED_RUNS = 7
# What a process takes that has imported torch and transformers, and computes.
_FRAMEWORK_BYTES = 400 * 2**20
_ROOM = 1.2  # of the weights' size, for what a forward pass holds
# Sizes beyond which a layer is only timed in part: it tells as much, and takes no memory.
_LARGEST_TIMED = 4096
_NAMED_SIZES = ("intermediate_size", "ffn_dim", "d_ff", "decoder_ffn_dim", "n_inner")


def read_config(conversion: Conversion, classes: Mapping[str, Iterable[str]]) -> Any:
    """transformers' configuration of the source, checked against what a task can serve.

    Args:
        classes: transformers' classes that the task can load, by model type.

    Raises:
        ArtifactNotAccessible: config.json missing or damaged.
        ExportFailed: it is of another task, needs its own code, is quantized, or is an adapter.
    """
    source = conversion.source
    if (source / "adapter_config.json").exists():
        raise ExportFailed("The model is a PEFT adapter; merge it into its base model first.")
    raw = read_json(source / "config.json")
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ArtifactNotAccessible("config.json names no model_type.")
    _refuse(raw, classes, conversion.task)
    try:
        return transformers.AutoConfig.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise ArtifactNotAccessible(f"config.json is not valid: {one_line(error)}.") from error


def _refuse(raw: Mapping[str, Any], classes: Mapping[str, Iterable[str]], task: str) -> None:
    kind = raw["model_type"]
    if kind not in CONFIG_MAPPING:
        why = (
            "brings its own code, which this task does not run"
            if raw.get("auto_map")
            else f"is unknown to transformers {transformers.__version__}"
        )
        raise ExportFailed(f"The architecture {kind!r} of config.json {why}.")
    if "quantization_config" in raw:
        raise ExportFailed("The model's weights are quantized; use the repository of the original.")
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    usable = tuple(classes.get(kind, ()))
    if not usable or (architecture is not None and architecture not in usable):
        raise ExportFailed(f"{architecture or repr(kind)} of config.json is no model for {task}.")


def choose_precision(conversion: Conversion, config: Any) -> str:
    """What the backend is to compute in: the user's choice, else bf16 where it is faster here.

    Measured on a layer of the model's own sizes, with one row (a token) and with 64 (a prompt):
    that is where a model's time goes. Weights in bf16 also take half the memory.

    Raises:
        EngineUnavailable: an engine or precision was asked for that this backend does not have.
    """
    if conversion.engine not in (None, ENGINE):
        raise EngineUnavailable(f"A model for {conversion.task} is served by {ENGINE} only.")
    if conversion.precision is not None:
        if conversion.precision not in PRECISIONS:
            asked = conversion.precision
            raise EngineUnavailable(
                f"{ENGINE} computes in {' or '.join(PRECISIONS)}, not in {asked}."
            )
        return conversion.precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    times = {name: _layer_time(config, dtype) for name, dtype in _DTYPES.items()}
    return "bf16" if times["bf16"] * _WORTH < times["fp32"] else "fp32"


def _layer_time(config: Any, dtype: torch.dtype) -> float:
    text = config.get_text_config(decoder=True)
    hidden = _size(text, ("hidden_size", "d_model", "n_embd"), 512)
    inner = _size(text, _NAMED_SIZES, 4 * hidden)
    # A new one each time, as many as there may be layers: a single one would stay in the cache.
    with torch.inference_mode():
        layers = [nn.Linear(hidden, inner, bias=False, dtype=dtype) for _ in range(4)]
        rows = [torch.randn(count, hidden).to(dtype) for count in (1, 64)]
        times = []
        for _ in range(_TIMED_RUNS):
            started = time.perf_counter()
            for layer in layers:
                for row in rows:
                    layer(row)
            times.append(time.perf_counter() - started)
    return min(times)


def _size(config: Any, names: Iterable[str], otherwise: int) -> int:
    found = (getattr(config, name, None) for name in names)
    size = next((value for value in found if isinstance(value, int) and value > 0), otherwise)
    return min(size, _LARGEST_TIMED)


def load_model(auto: Any, conversion: Conversion, weights: Weights, precision: str) -> Any:
    """The model in `precision`, every weight of which comes from the source.

    Args:
        auto: transformers' class, e.g. AutoModelForCausalLM.

    Raises:
        ArtifactNotAccessible: the weights do not fit config.json.
    """
    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    try:
        model, loading = auto.from_pretrained(
            conversion.source,
            dtype=_DTYPES[precision],
            local_files_only=True,
            use_safetensors=weights.safe,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except Exception as error:
        raise ArtifactNotAccessible(f"The weights cannot be loaded: {one_line(error)}.") from error
    odd = sorted(loading["missing_keys"]) + sorted(name for name, *_ in loading["mismatched_keys"])
    if odd:
        raise ArtifactNotAccessible(
            f"The weights do not fit config.json: {odd[0]}"
            + (f" and {len(odd) - 1} more are" if len(odd) > 1 else " is")
            + " missing or of another size."
        )
    return model.eval()


def load_processor(auto: Any, source: Path, what: str) -> Any:
    """The tokenizer or processor of the source.

    Raises:
        ArtifactNotAccessible: none there, or damaged.
    """
    try:
        return auto.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise ArtifactNotAccessible(f"The {what} cannot be read: {one_line(error)}.") from error


def context_length(config: Any, tokenizer: Any, otherwise: int) -> int:
    """Tokens that the model was made for: its positions, else its tokenizer's limit."""
    text = config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len")
    found = [getattr(text, name, None) for name in names]
    # T5 and its kin compute distances: what their files call n_positions limits nothing.
    if not hasattr(text, "relative_attention_num_buckets"):
        for value in found:
            if isinstance(value, int) and value > 0:
                return value
    limit = tokenizer.model_max_length
    return int(limit) if 0 < limit < 10**9 else otherwise


def has_chat_template(processor: Any) -> bool:
    """Whether a conversation can be put into the model's own form."""
    return getattr(processor, "chat_template", None) is not None


def defaults(model: Any) -> dict[str, Any]:
    """What of generation_config.json has a say when a request does not: shown to users."""
    config = model.generation_config
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size")
    named = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in named.items() if value is not None}


def end_tokens(model: Any) -> list[int]:
    """The tokens that end an answer."""
    named = model.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    return [int(token) for token in listed if token is not None]


def base_manifest(
    identity: Identity, *, task: str, backend: str, precision: str, model: Any, weights: Weights
) -> dict[str, Any]:
    """The manifest's part that is the same for both tasks."""
    return {
        "format": 1,
        "model_id": identity.model_id,
        "version": identity.version,
        "revision": identity.revision,
        "source_checksum": identity.source_checksum,
        "task_type": task,
        "backend": backend,
        "engine": ENGINE,
        "precision": precision,
        "max_batch_size": 0,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": weights.dtype or "unknown",
        "converter": {
            name: metadata.version(name).partition("+")[0]
            for name in ("modelmora", "torch", "transformers")
        },
    }


def load_bytes(model: Any, kv_bytes: int = 0) -> int:
    """The size whose one and a half times the registry takes for what the loaded model needs.

    Measured needs take its place after the first load.

    Args:
        kv_bytes: what keys and values of running requests may take at most.
    """
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    need = int(held * _ROOM) + kv_bytes + _FRAMEWORK_BYTES
    return need * 2 // 3


def tensor(name: str, datatype: str = "BYTES", *, optional: bool = False) -> dict[str, Any]:
    """One element of that type, as a manifest describes it."""
    described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [1]}
    return described | {"optional": True} if optional else described


OUTPUTS = [
    tensor("text_output"),
    tensor("finish_reason"),
    tensor("prompt_tokens", "INT32"),
    tensor("completion_tokens", "INT32"),
]
