"""Reads what a repository says about its sentence embedding: modules.json and friends.

The format and every default are those of sentence-transformers 6 (`base/model.py`,
`base/modules/*.py`, `sentence_transformer/modules/*.py`), which is not imported. Nothing here
loads weights or torch, so that a refusal comes within a fraction of a second.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from converters.errors import ArtifactNotAccessible, ExportFailed
from converters.specs import (
    DenseSpec,
    LayerNormSpec,
    NormalizeSpec,
    PoolingSpec,
    SentenceModel,
    TransformerSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

    from converters.specs import LayerSpec

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# The boolean keys of configurations before 5.5, in the order in which several are concatenated.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# Arguments that say where to fetch from or whose code to run; the converter decides these.
_NEVER_FROM_CONFIG = frozenset(
    {"trust_remote_code", "code_revision", "revision", "token", "cache_dir", "subfolder"}
    | {"local_files_only", "force_download", "proxies"}
)


def read_json(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
        ArtifactNotAccessible: the file is missing or no JSON, naming it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactNotAccessible(f"{path.name} is missing in {path.parent}.") from None
    except (OSError, ValueError) as error:
        raise ArtifactNotAccessible(
            f"{path.name} in {path.parent} cannot be read: {error}."
        ) from error


def read_sentence_model(source: Path) -> SentenceModel:
    """Read modules.json and everything it points to; defaults where there is none.

    Without modules.json: mean pooling, or last-token pooling for a causal language model, no
    prompts, as sentence-transformers' `_load_default_modules`.

    Raises:
        ArtifactNotAccessible: a file is missing or damaged.
        ExportFailed: a module or an option that the converter does not know, naming it.
    """
    if not source.is_dir():
        raise ArtifactNotAccessible(f"{source} is not a folder.")
    if not (source / "modules.json").exists():
        return _default_model(source)
    settings = _object(source / "config_sentence_transformers.json", missing={})
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ExportFailed(
            f"The model is a {kind}; only SentenceTransformer models give one vector per text."
        )
    transformer, layers = _modules(source)
    prompts, default_prompt_name = _prompts(settings)
    return SentenceModel(
        transformer=transformer,
        layers=layers,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        truncate_dim=settings.get("truncate_dim"),
    )


def _default_model(source: Path) -> SentenceModel:
    config = _object(source / "config.json")
    architecture = (config.get("architectures") or [""])[0]
    causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
    pooling = PoolingSpec(("lasttoken",) if causal else ("mean",))
    return SentenceModel(TransformerSpec(source), (pooling,), described=False)


def _modules(source: Path) -> tuple[TransformerSpec, tuple[LayerSpec, ...]]:
    entries = read_json(source / "modules.json")
    if not (isinstance(entries, list) and entries and all(_is_entry(entry) for entry in entries)):
        raise ArtifactNotAccessible("modules.json is not a list of modules with a type and a path.")
    kinds = [_kind(entry["type"]) for entry in entries]
    if kinds[0] != "Transformer" or kinds.count("Transformer") > 1:
        raise ExportFailed("modules.json must begin with its one Transformer module.")
    folders = [_inside(source, entry["path"]) for entry in entries]
    layers = [_LAYERS[kind](folder) for kind, folder in zip(kinds[1:], folders[1:], strict=True)]
    transformer = _transformer(folders[0])
    kept = tuple(layer for layer in layers if layer is not None)
    pools = sum(isinstance(layer, PoolingSpec) for layer in kept)
    if transformer.output_name == "token_embeddings" and pools != 1:
        raise ExportFailed(f"modules.json lists {pools} Pooling modules; exactly one is needed.")
    return transformer, kept


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("type"), str) and "path" in entry


def _kind(class_path: str) -> str:
    # Both `sentence_transformers.models.Pooling` and the paths of later releases are in use.
    package, _, name = class_path.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise ExportFailed(
            f"The module {class_path!r} of modules.json is code of the repository's own, "
            "which ModelMora does not run."
        )
    if name != "Transformer" and name not in _LAYERS:
        raise ExportFailed(f"The module {class_path!r} of modules.json is not supported.")
    return name


def _inside(source: Path, relative: str) -> Path:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactNotAccessible(f"modules.json points outside of the model: {relative!r}.")
    return source / path


def _transformer(folder: Path) -> TransformerSpec:
    config = _first_object(folder, _TRANSFORMER_CONFIGS)
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ExportFailed(f"The transformer task {task!r} gives no text embedding.")
    output_path, output_name = _text_output(config)
    return TransformerSpec(
        folder=folder,
        output_path=output_path,
        output_name=output_name,
        max_seq_length=config.get("max_seq_length"),
        do_lower_case=bool(config.get("do_lower_case", False)),
        config_options=_options(config, "config_kwargs", "config_args"),
        tokenizer_options=_options(config, "processor_kwargs", "tokenizer_args"),
    )


def _text_output(config: dict[str, Any]) -> tuple[tuple[str | int, ...], str]:
    modalities = config.get("modality_config")
    if modalities is None:
        return ("last_hidden_state",), "token_embeddings"
    if "message" in modalities or "text" not in modalities:
        raise ExportFailed(
            f"The model takes {', '.join(sorted(modalities))} as input; only text is supported."
        )
    text = modalities["text"]
    output_name = config.get("module_output_name", "token_embeddings")
    if text.get("method") != "forward" or text.get("method_output_name") is None:
        raise ExportFailed(f"The transformer's method {text.get('method')!r} is not supported.")
    steps = text["method_output_name"]
    return tuple(steps) if isinstance(steps, list) else (steps,), output_name


def _options(config: dict[str, Any], *names: str) -> dict[str, Any]:
    given: dict[str, Any] = next((config[name] for name in names if config.get(name)), {})
    return {key: value for key, value in given.items() if key not in _NEVER_FROM_CONFIG}


def _pooling(folder: Path) -> PoolingSpec:
    config = _object(folder / "config.json", missing={})
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in POOLING_MODES:
            raise ExportFailed(f"The pooling mode {mode!r} in {folder.name} is not supported.")
    return PoolingSpec(modes, include_prompt=config.get("include_prompt", True))


def _dense(folder: Path) -> DenseSpec:
    config = _object(folder / "config.json")
    source = config.get("module_input_name", "sentence_embedding")
    return DenseSpec(
        folder=folder,
        in_features=_needed(config, "in_features", folder),
        out_features=_needed(config, "out_features", folder),
        bias=config.get("bias", True),
        activation=_activation(config.get("activation_function", "torch.nn.Tanh"), folder),
        use_residual=config.get("use_residual", False),
        input_name=source,
        output_name=config.get("module_output_name") or source,
    )


def _activation(name: str, folder: Path) -> str:
    # sentence-transformers would take Tanh for a name it does not trust: wrong vectors, silently.
    if not name.startswith("torch.nn."):
        raise ExportFailed(f"The activation {name!r} of {folder.name} is not one of torch.nn.")
    return name.rpartition(".")[2]


def _normalize(folder: Path) -> NormalizeSpec:
    config = _object(folder / "config.json", missing={})
    source = config.get("module_input_name", "sentence_embedding")
    return NormalizeSpec(source, config.get("module_output_name") or source)


def _layer_norm(folder: Path) -> LayerNormSpec:
    return LayerNormSpec(folder, _needed(_object(folder / "config.json"), "dimension", folder))


_LAYERS: dict[str, Any] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": lambda _folder: None,  # does nothing outside of training
}


def _prompts(settings: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    prompts = {name: text or "" for name, text in (settings.get("prompts") or {}).items()}
    default = settings.get("default_prompt_name")
    # These two exist in every sentence-transformers model, empty unless the model fills them.
    if default in ("query", "document"):
        prompts.setdefault(default, "")
    if default is not None and default not in prompts:
        raise ExportFailed(
            f"config_sentence_transformers.json lacks its own default prompt {default!r}."
        )
    return prompts, default


def _needed(config: dict[str, Any], key: str, folder: Path) -> int:
    if not isinstance(config.get(key), int):
        raise ArtifactNotAccessible(f"config.json in {folder.name} has no whole number {key!r}.")
    return int(config[key])


def _object(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.exists():
        return missing
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactNotAccessible(f"{path.name} in {path.parent} is not a JSON object.")
    return value


def _first_object(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        if config := _object(folder / name, missing={}):
            return config
    return {}
