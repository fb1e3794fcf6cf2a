"""Reading modules.json and friends: what each file and its absence mean, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from converters.errors import ArtifactNotAccessible, ConversionError, ExportFailed
from converters.sentence_model import read_sentence_model
from converters.specs import (
    DenseSpec,
    LayerNormSpec,
    NormalizeSpec,
    PoolingSpec,
)
from tests.models import sentence_files

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def modules(folder: Path, *entries: tuple[str, str]) -> None:
    """Write modules.json from (class path, folder) pairs."""
    write(folder / "modules.json", [{"type": kind, "path": path} for kind, path in entries])


OLD = "sentence_transformers.models."
TRANSFORMER = (OLD + "Transformer", "")
POOLING = (OLD + "Pooling", "1_Pooling")


def test_transformer_pooling_normalize(tmp_path: Path) -> None:
    sentence_files(tmp_path, transformer={"max_seq_length": 77, "do_lower_case": True})
    model = read_sentence_model(tmp_path)
    assert model.layers == (PoolingSpec(("mean",)), NormalizeSpec())
    assert model.normalized
    assert model.transformer.folder == tmp_path
    assert model.transformer.max_seq_length == 77
    assert model.transformer.do_lower_case


def test_class_paths_of_later_releases(tmp_path: Path) -> None:
    modules(
        tmp_path,
        ("sentence_transformers.base.modules.transformer.Transformer", "0_Transformer"),
        ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
        ("sentence_transformers.sentence_transformer.modules.LayerNorm", "2"),
        ("sentence_transformers.models.Dropout", "3"),
        ("sentence_transformers.base.modules.normalize.Normalize", "4_Normalize"),
    )
    write(tmp_path / "2/config.json", {"dimension": 5})
    model = read_sentence_model(tmp_path)
    assert model.transformer.folder == tmp_path / "0_Transformer"
    assert model.layers == (
        PoolingSpec(),
        LayerNormSpec(tmp_path / "2", 5),
        NormalizeSpec(),
    )


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({}, ("mean",)),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["max", "cls"]}, ("max", "cls")),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, ("cls",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
    ],
)
def test_pooling_modes(config: dict[str, Any], modes: tuple[str, ...], tmp_path: Path) -> None:
    modules(tmp_path, TRANSFORMER, POOLING)
    write(tmp_path / "1_Pooling/config.json", config)
    assert read_sentence_model(tmp_path).layers == (PoolingSpec(modes),)


def test_dense(tmp_path: Path) -> None:
    activation = "torch.nn.modules.activation.ReLU"
    config = {"in_features": 4, "out_features": 2, "bias": False, "activation_function": activation}
    modules(tmp_path, TRANSFORMER, POOLING, (OLD + "Dense", "2_Dense"))
    write(tmp_path / "2_Dense/config.json", config)
    _, dense = read_sentence_model(tmp_path).layers
    assert dense == DenseSpec(tmp_path / "2_Dense", 4, 2, bias=False, activation="ReLU")


def test_prompts(tmp_path: Path) -> None:
    sentence_files(tmp_path, prompts={"query": "q: ", "other": "o: "}, default_prompt_name="other")
    model = read_sentence_model(tmp_path)
    assert model.prompts == {"query": "q: ", "other": "o: "}
    assert (model.default_prompt_name, model.default_prompt) == ("other", "o: ")


def test_default_prompt_that_every_model_has(tmp_path: Path) -> None:
    sentence_files(tmp_path, prompts={}, default_prompt_name="document")
    model = read_sentence_model(tmp_path)
    assert (model.prompts, model.default_prompt) == ({"document": ""}, "")


def test_truncated_vectors_are_not_of_unit_length(tmp_path: Path) -> None:
    sentence_files(tmp_path)
    write(tmp_path / "config_sentence_transformers.json", {"truncate_dim": 64})
    model = read_sentence_model(tmp_path)
    assert model.truncate_dim == 64
    assert not model.normalized


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"architectures": ["BertModel"]}, ("mean",)),
        ({}, ("mean",)),
        ({"architectures": ["Qwen3ForCausalLM"]}, ("lasttoken",)),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, ("mean",)),
    ],
)
def test_without_modules_json(
    config: dict[str, Any], modes: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "config.json", config)
    # Without modules.json sentence-transformers reads none of the others either.
    write(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 3})
    model = read_sentence_model(tmp_path)
    assert model.layers == (PoolingSpec(modes),)
    assert (model.prompts, model.transformer.max_seq_length) == ({}, None)
    assert not model.described


def test_transformer_configuration_of_older_models(tmp_path: Path) -> None:
    sentence_files(tmp_path)
    write(tmp_path / "sentence_xlm-roberta_config.json", {"max_seq_length": 99})
    assert read_sentence_model(tmp_path).transformer.max_seq_length == 99


def test_options_for_transformers_never_allow_code(tmp_path: Path) -> None:
    options = {"trust_remote_code": True, "code_revision": "x", "padding_side": "left"}
    sentence_files(tmp_path, transformer={"tokenizer_args": options, "config_args": options})
    spec = read_sentence_model(tmp_path).transformer
    assert spec.tokenizer_options == {"padding_side": "left"}
    assert spec.config_options == {"padding_side": "left"}


def test_text_output_named_by_the_configuration(tmp_path: Path) -> None:
    text = {"method": "forward", "method_output_name": ["hidden_states", -2]}
    config = {"modality_config": {"text": text}, "module_output_name": "token_embeddings"}
    sentence_files(tmp_path, transformer=config)
    assert read_sentence_model(tmp_path).transformer.output_path == ("hidden_states", -2)


def refused(folder: Path, kind: type[ConversionError], words: str) -> None:
    with pytest.raises(kind) as caught:
        read_sentence_model(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["StaticEmbedding", "CNN", "LSTM", "BoW", "WeightedLayerPooling", "Router", "CLIPModel"]
)
def test_module_not_supported(kind: str, tmp_path: Path) -> None:
    modules(tmp_path, TRANSFORMER, (OLD + kind, "1"))
    refused(tmp_path, ExportFailed, f"'sentence_transformers.models.{kind}' of modules.json")


def test_module_with_code_of_its_own(tmp_path: Path) -> None:
    modules(tmp_path, ("custom_st.Transformer", ""), POOLING)
    refused(tmp_path, ExportFailed, "'custom_st.Transformer' of modules.json is code")


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b"])
def test_module_outside_of_the_folder(path: str, tmp_path: Path) -> None:
    modules(tmp_path, TRANSFORMER, (OLD + "Pooling", path))
    refused(tmp_path, ArtifactNotAccessible, "outside of the model")


@pytest.mark.parametrize("content", [[], {}, [{"type": 3}], ["x"], [{"type": "a.B"}]])
def test_modules_json_malformed(content: Any, tmp_path: Path) -> None:
    write(tmp_path / "modules.json", content)
    refused(tmp_path, ArtifactNotAccessible, "modules.json is not a list of modules")


def test_no_pooling(tmp_path: Path) -> None:
    modules(tmp_path, TRANSFORMER)
    refused(tmp_path, ExportFailed, "0 Pooling modules")


def test_transformer_not_first(tmp_path: Path) -> None:
    modules(tmp_path, POOLING, TRANSFORMER)
    refused(tmp_path, ExportFailed, "must begin with its one Transformer")


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder"])
def test_other_kinds_of_model(kind: str, tmp_path: Path) -> None:
    sentence_files(tmp_path)
    write(tmp_path / "config_sentence_transformers.json", {"model_type": kind})
    refused(tmp_path, ExportFailed, f"The model is a {kind}")


@pytest.mark.parametrize(
    ("transformer", "words"),
    [
        ({"transformer_task": "fill-mask"}, "'fill-mask'"),
        ({"modality_config": {"message": {}, "text": {}}}, "message, text"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "'get_text_features'"),
    ],
)
def test_transformer_not_supported(transformer: dict[str, Any], words: str, tmp_path: Path) -> None:
    sentence_files(tmp_path, transformer=transformer)
    refused(tmp_path, ExportFailed, words)


def test_pooling_mode_unknown(tmp_path: Path) -> None:
    sentence_files(tmp_path, pooling="median")
    refused(tmp_path, ExportFailed, "'median' in 1_Pooling")


def test_default_prompt_missing(tmp_path: Path) -> None:
    sentence_files(tmp_path, prompts={"a": "b"}, default_prompt_name="c")
    refused(tmp_path, ExportFailed, "default prompt 'c'")


def test_activation_of_the_repository(tmp_path: Path) -> None:
    modules(tmp_path, TRANSFORMER, POOLING, (OLD + "Dense", "2_Dense"))
    config = {"in_features": 4, "out_features": 2, "activation_function": "mine.Swish"}
    write(tmp_path / "2_Dense/config.json", config)
    refused(tmp_path, ExportFailed, "'mine.Swish' of 2_Dense")


def test_dense_without_sizes(tmp_path: Path) -> None:
    modules(tmp_path, TRANSFORMER, POOLING, (OLD + "Dense", "2_Dense"))
    write(tmp_path / "2_Dense/config.json", {"in_features": 4})
    refused(tmp_path, ArtifactNotAccessible, "'out_features'")
