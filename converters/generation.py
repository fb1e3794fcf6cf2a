"""What both converters of text generators share: reading the source, loading, the manifest.

Nothing is exported: the model's own files are packaged, and its backend runs transformers.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from converters.errors import ArtifactNotAccessible, ExportFailed, one_line
from converters.precision import DTYPES, ENGINE
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from converters.conversion import Conversion
    from converters.manifest import Identity
    from converters.precision import Settled
    from converters.weights import Weights

# What a process takes that has imported torch and transformers, and computes.
_FRAMEWORK_BYTES = 400 * 2**20
_ROOM = 1.2  # of the weights' size, for what a forward pass holds


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
            dtype=DTYPES[precision],
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
    identity: Identity, *, task: str, backend: str, settled: Settled, weights: Weights
) -> dict[str, Any]:
    """The manifest's part that is the same for both tasks."""
    measured = {"candidates": settled.table} if settled.table else {}
    return measured | {
        "format": 1,
        "model_id": identity.model_id,
        "version": identity.version,
        "revision": identity.revision,
        "source_checksum": identity.source_checksum,
        "task_type": task,
        "backend": backend,
        "engine": ENGINE,
        "precision": settled.precision,
        "max_batch_size": 0,
        "parameters": sum(parameter.numel() for parameter in settled.model.parameters()),
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
