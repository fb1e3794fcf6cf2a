"""What a model's own files say about it: task, dimensions, length, parameters, licence. No network.

Each value is a `Fact` (`facts.py`); those of the weights are `weight_facts.py`'s. Nothing here
raises: a file that is missing, damaged or odd tells nothing, since the converter will say what is
wrong with it.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import yaml

from controlplane.registry.facts import FILE, Fact, Facts
from controlplane.registry.files import MODULES, is_plain_path
from controlplane.registry.image_families import image_vector_size, is_image_encoder
from controlplane.registry.model import SHORT, TaskType
from controlplane.registry.ready_models import CONFIG as TRITON_CONFIG
from controlplane.registry.ready_models import is_ready_made
from controlplane.registry.selection_diffusers import MODEL_INDEX
from controlplane.registry.text_families import writing_task
from controlplane.registry.weight_facts import weight_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Read = Callable[[str], bytes | None]

CARD = "README.md"
CONFIG = "config.json"
# What is worth asking the hub for before anything is downloaded; folders of modules.json beside.
SMALL_FILES = (
    MODULES,
    MODEL_INDEX,
    CONFIG,
    CARD,
    "sentence_bert_config.json",
    "tokenizer_config.json",
)
LARGEST_SMALL_FILE = 4 * 1024 * 1024
# With its table of benchmark results a model card's front matter may have some hundred kilobytes.
_LARGEST_FRONT_MATTER = 1024 * 1024
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is built
_UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30
_BY_PIPELINE = {
    "sentence-similarity": TaskType.TXT2EMBED,
    "feature-extraction": TaskType.TXT2EMBED,
    "text-generation": TaskType.TXT2TXT,
    "text2text-generation": TaskType.TXT2TXT,
    "summarization": TaskType.TXT2TXT,
    "translation": TaskType.TXT2TXT,
    "text-to-image": TaskType.TXT2IMG,
    "image-to-text": TaskType.IMG2TXT,
    "image-text-to-text": TaskType.IMG2TXT,
    "image-feature-extraction": TaskType.IMG2EMBED,
    "image-to-image": TaskType.IMG2IMG,
    "automatic-speech-recognition": TaskType.AUDIO2TXT,
    "text-to-speech": TaskType.TXT2AUDIO,
    "text-to-audio": TaskType.TXT2AUDIO,
    "text-classification": TaskType.CLASSIFICATION,
    "text-ranking": TaskType.CLASSIFICATION,
    "image-classification": TaskType.CLASSIFICATION,
    "zero-shot-classification": TaskType.CLASSIFICATION,
    "object-detection": TaskType.OBJECT_DETECTION,
    "question-answering": TaskType.QUESTION_ANSWERING,
}
# The end of an architecture's name in config.json.
_BY_ARCHITECTURE = {
    "ForSequenceClassification": TaskType.CLASSIFICATION,
    "ForImageClassification": TaskType.CLASSIFICATION,
    "ForQuestionAnswering": TaskType.QUESTION_ANSWERING,
    "ForObjectDetection": TaskType.OBJECT_DETECTION,
    "ForSpeechSeq2Seq": TaskType.AUDIO2TXT,
    "ForCTC": TaskType.AUDIO2TXT,
    "WhisperForConditionalGeneration": TaskType.AUDIO2TXT,
    "VitsModel": TaskType.TXT2AUDIO,
    "BarkModel": TaskType.TXT2AUDIO,
    "ForTextToWaveform": TaskType.TXT2AUDIO,
    "ForTextToSpeech": TaskType.TXT2AUDIO,
}
# In the names of diffusers' pipelines that begin with a picture.
_EDITING = ("Img2Img", "Pix2Pix", "Edit", "Kontext")
# Encoders of text whose bare `…Model` is an embedding model for all that anybody does with it.
_TEXT_ENCODERS = {
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("gemma3_text", "gte", "modernbert", "mpnet", "new", "nomic_bert", "roberta", "xlm-roberta"),
    *("nomic-bert", "xlm-roberta-xl"),
}
_POOLING_FLAGS = "pooling_mode_"


def read_facts(read: Read) -> Facts:
    """What the small files of a model tell.

    Args:
        read: a file's content by its path within the source; None when it has no such file.

    Returns:
        Any of task_type, vector_size, max_length, framework, library, license, language.
    """
    config, card = _object(read, CONFIG), _front_matter(read(CARD))
    modules = _modules(read)
    facts = {
        "task_type": _task(modules, card, config, _object(read, MODEL_INDEX)),
        "vector_size": _vector_size(read, modules, config),
        "max_length": _max_length(read, modules, config),
        "library": _text_fact(card, "library_name"),
        "license": _text_fact(card, "license"),
        "language": _languages(card),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def module_configs(modules: bytes | None) -> tuple[str, ...]:
    """Paths of the modules' own configurations that modules.json points to."""
    folders = [path for _, path in _modules({MODULES: modules}.get) if path]
    return tuple(f"{folder}/{CONFIG}" for folder in folders)


def read_folder(folder: Path) -> Facts:
    """All facts of a source on disk: `read_facts`, and its weights' headers.

    Returns:
        As `read_facts`, and parameters, dtype, framework, memory_mb where weights are safetensors.
    """

    def read(path: str) -> bytes | None:
        try:
            target = folder / path
            return target.read_bytes() if target.stat().st_size <= LARGEST_SMALL_FILE else None
        except OSError:
            return None

    if is_ready_made(os.listdir(folder)):  # noqa: PTH208 names are enough
        return ready_made_facts()
    return read_facts(read) | weight_facts(folder)


def ready_made_facts() -> Facts:
    """What every ready-made Triton model tells."""
    return {"task_type": Fact(TaskType.CUSTOM.value, FILE, TRITON_CONFIG)}


# -- single facts --------------------------------------------------------------------------------


def _task(
    modules: list[tuple[str, str]],
    card: Mapping[str, Any],
    config: Mapping[str, Any],
    index: Mapping[str, Any],
) -> Fact | None:
    kinds = {kind for kind, _ in modules}
    if "CLIPModel" in kinds:
        return Fact(TaskType.IMG2EMBED.value, FILE, MODULES)
    if "Transformer" in kinds and not any("Splade" in kind for kind in kinds):
        return Fact(TaskType.TXT2EMBED.value, FILE, MODULES)
    tag = card.get("pipeline_tag")
    # never str() of what YAML gave: aliases make a few lines into gigabytes of text
    tagged = _BY_PIPELINE.get(tag) if isinstance(tag, str) else None
    # The hub calls vectors of anything "feature-extraction".
    if tagged is TaskType.TXT2EMBED and is_image_encoder(config):
        return Fact(TaskType.IMG2EMBED.value, FILE, CONFIG)
    if tagged is not None:
        return Fact(tagged.value, FILE, CARD)
    pipeline = index.get("_class_name")
    if isinstance(pipeline, str):
        edits = any(word in pipeline for word in _EDITING)
        task = TaskType.IMG2IMG if edits else TaskType.TXT2IMG
        return Fact(task.value, FILE, MODEL_INDEX)
    built = _by_architecture(config)
    return None if built is None else Fact(built.value, FILE, CONFIG)


def _by_architecture(config: Mapping[str, Any]) -> TaskType | None:
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if (writes := writing_task(architecture, config)) is not None:
        return writes
    for ending, task in _BY_ARCHITECTURE.items():
        if architecture.endswith(ending):
            return task
    if is_image_encoder(config):
        return TaskType.IMG2EMBED
    encoder = architecture.endswith("Model") and config.get("model_type") in _TEXT_ENCODERS
    return TaskType.TXT2EMBED if encoder else None


def _vector_size(
    read: Read, modules: list[tuple[str, str]], config: Mapping[str, Any]
) -> Fact | None:
    """Of the last module that says so; the hidden size of a model without modules."""
    for kind, folder in reversed(modules):
        path = f"{folder}/{CONFIG}" if folder else CONFIG
        if kind == "Dense" and (size := _count(_object(read, path).get("out_features"))):
            return Fact(size, FILE, path)
        if kind == "Pooling" and (size := _pooled(_object(read, path))):
            return Fact(size, FILE, path)
        if kind == "CLIPModel" and (size := _count(image_vector_size(_object(read, path)))):
            return Fact(size, FILE, path)
    if is_image_encoder(config):
        size = _count(image_vector_size(config))
        return Fact(size, FILE, CONFIG) if size else None
    size = _count(config.get("hidden_size")) or _count(config.get("dim"))
    return Fact(size, FILE, CONFIG) if size else None


def _pooled(config: Mapping[str, Any]) -> int | None:
    """Several ways of pooling are put one behind the other."""
    size = _count(config.get("word_embedding_dimension")) or _count(
        config.get("embedding_dimension")
    )
    mode = config.get("pooling_mode")
    if isinstance(mode, list):
        ways = len(mode)
    elif mode is not None:
        ways = 1
    else:
        ways = sum(bool(value) for name, value in config.items() if name.startswith(_POOLING_FLAGS))
    return size * (ways or 1) if size else None


def _max_length(
    read: Read, modules: list[tuple[str, str]], config: Mapping[str, Any]
) -> Fact | None:
    home = next((folder for kind, folder in modules if kind == "Transformer"), "")
    prefix = f"{home}/" if home else ""
    sentence = f"{prefix}sentence_bert_config.json"
    if length := _count(_object(read, sentence).get("max_seq_length")):
        return Fact(length, FILE, sentence)
    tokenizer = f"{prefix}tokenizer_config.json"
    limits = {
        tokenizer: _count(_object(read, tokenizer).get("model_max_length")),
        CONFIG: _positions(config),
    }
    known = {file: limit for file, limit in limits.items() if limit and limit < _UNLIMITED}
    if not known:
        return None
    file = min(known, key=lambda name: known[name])
    return Fact(known[file], FILE, file)


def _positions(config: Mapping[str, Any]) -> int | None:
    """Positions a text may take: RoBERTa and its kin count theirs from behind the padding id."""
    limit = _count(config.get("max_position_embeddings"))
    if limit and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        padding = config.get("pad_token_id")
        return limit - (padding if isinstance(padding, int) else 1) - 1
    return limit


def _text_fact(card: Mapping[str, Any], name: str) -> Fact | None:
    value = card.get(name)
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= SHORT:
        return None
    return Fact(value.strip(), FILE, CARD)


def _languages(card: Mapping[str, Any]) -> Fact | None:
    value = card.get("language")
    named = value if isinstance(value, list) else [value]
    # YAML reads the language code `no` as false.
    codes = ["no" if code is False else code for code in named]
    texts = [code for code in codes if isinstance(code, str) and 1 <= len(code) <= SHORT]
    return Fact(texts[:SHORT], FILE, CARD) if texts else None


# -- files ---------------------------------------------------------------------------------------


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return None
    return value


def _object(read: Read, path: str) -> dict[str, Any]:
    try:
        value = json.loads(read(path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _modules(read: Read) -> list[tuple[str, str]]:
    """Kind and folder of each module, in order; empty for what is no sentence-transformer."""
    try:
        entries = json.loads(read(MODULES) or b"[]")
        found = [
            (str(entry["type"]).rpartition(".")[2], str(entry["path"]).strip("/"))
            for entry in entries
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [(kind, path) for kind, path in found if not path or is_plain_path(path)]


def _front_matter(content: bytes | None) -> dict[str, Any]:
    """The YAML between the two `---` at the beginning of a model card."""
    start = (content or b"")[:_LARGEST_FRONT_MATTER]
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff")
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return {}
    try:
        value = yaml.load("\n".join(lines[1:end]), Loader=_LOADER)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
