"""What a request may hold, and what it is told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.errors import InputError
from backends.request_texts import MAX_CHARACTERS
from backends.text_embedding.artefact import TextEmbeddingArtefact
from backends.text_embedding.embedder import normalized
from backends.text_embedding.requests import read_request


def artefact(**changes: Any) -> TextEmbeddingArtefact:
    fields: dict[str, Any] = {
        "model_id": "org/name",
        "engine": "onnxruntime",
        "precision": "fp32",
        "model_file": Path("model.onnx"),
        "tokenizer_file": Path("tokenizer.json"),
        "input_names": ("input_ids", "attention_mask"),
        "output_name": "sentence_embedding",
        "dimension": 4,
        "max_seq_length": 16,
        "do_lower_case": False,
        "pad_token_id": 0,
        "pad_token_type_id": 0,
        "padding_side": "right",
        "truncation_side": "right",
        "normalized": True,
        "prompts": {"query": "query: ", "passage": "passage: "},
        "default_prompt_name": None,
    }
    return TextEmbeddingArtefact(**fields | changes)


def column(*texts: str | bytes) -> np.ndarray[Any, Any]:
    raw = [[t.encode() if isinstance(t, str) else t] for t in texts]
    return np.array(raw, dtype=np.object_).reshape(len(raw), 1)


def test_texts_are_read_as_utf8() -> None:
    request = read_request(column("a", "", "日本語 😀"), {}, artefact())
    assert request.texts == ("a", "", "日本語 😀")


@pytest.mark.parametrize("shape", [(0,), (0, 1)])
def test_no_texts_are_a_request_too(shape: tuple[int, ...]) -> None:
    assert read_request(np.empty(shape, dtype=np.object_), {}, artefact()).texts == ()


def test_texts_may_come_without_the_inner_dimension() -> None:
    assert read_request(column("a", "b").reshape(2), {}, artefact()).texts == ("a", "b")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (column("fine", b"\xff\xfe"), "Text 1 is not valid UTF-8: invalid start byte at byte 0."),
        (column("x" * (MAX_CHARACTERS + 1)), "Text 0 has 100,001 characters; at most 100,000"),
        (column("a", "b").reshape(1, 2), r"shape \[n, 1\], one text per row, got \[1, 2\]"),
        (column("a").reshape(1, 1, 1), r"got \[1, 1, 1\]"),
        (np.array([["text"]], dtype=np.object_), "must hold BYTES, got str"),
    ],
)
def test_bad_texts_are_refused(texts: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_request(texts, {}, artefact())


def test_the_limit_counts_characters_not_bytes() -> None:
    text = "ü" * MAX_CHARACTERS
    assert read_request(column(text), {}, artefact()).texts == (text,)


@pytest.mark.parametrize(
    ("in_graph", "asked", "ours"),
    [
        (True, None, False),
        (True, True, False),
        (False, None, False),
        (False, True, True),
        (False, False, False),
    ],
)
def test_normalize_is_ours_where_the_graph_does_not(
    in_graph: bool, asked: bool | None, ours: bool
) -> None:
    parameters = {} if asked is None else {"normalize": asked}
    request = read_request(column("a"), parameters, artefact(normalized=in_graph))
    assert request.normalize is ours


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"normalize": False}, "org/name always normalises its embeddings"),
        ({"normalize": "yes"}, "Parameter normalize must be true or false, got 'yes'"),
        ({"normalize": 1}, "must be true or false"),
        ({"prompt_name": "title"}, "no prompt 'title'; its prompts are: passage, query"),
        ({"prompt_name": 7}, "no prompt 7"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_request(column("a"), parameters, artefact())


def test_a_model_without_prompts_says_so() -> None:
    with pytest.raises(InputError, match="it has none"):
        read_request(column("a"), {"prompt_name": "query"}, artefact(prompts={}))


def test_prompts_go_before_the_text() -> None:
    assert read_request(column("a"), {"prompt_name": "query"}, artefact()).texts == ("query: a",)


def test_the_default_prompt_applies_unless_another_is_named() -> None:
    model = artefact(default_prompt_name="passage")
    assert read_request(column("a"), {}, model).texts == ("passage: a",)
    assert read_request(column("a"), {"prompt_name": "query"}, model).texts == ("query: a",)


def test_parameters_of_others_are_left_alone() -> None:
    assert read_request(column("a"), {"binary_data_output": True}, artefact()).texts == ("a",)


def test_normalized_rows_have_length_one_and_zeros_stay_zeros() -> None:
    rows = normalized(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]])
    assert rows.dtype == np.float32
