"""A version folder that is not what its manifest says is refused in one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from backends.engines import open_engine
from backends.errors import ArtefactError, EngineError
from backends.text_embedding.artefact import read_artefact
from backends.text_embedding.tokens import TextTokenizer

if TYPE_CHECKING:
    from pathlib import Path

SECTION: dict[str, Any] = {
    "model_file": "model.onnx",
    "tokenizer_file": "tokenizer.json",
    "input_names": ["input_ids", "attention_mask"],
    "output_name": "sentence_embedding",
    "dimension": 4,
    "max_seq_length": 16,
    "do_lower_case": False,
    "pad_token_id": 0,
    "pad_token_type_id": 0,
    "padding_side": "right",
    "normalized": True,
    "prompts": {},
    "default_prompt_name": None,
}


def write(folder: Path, section: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A version folder with a manifest and a model file of 3 bytes; returns it."""
    (folder / "model.onnx").write_bytes(b"abc")
    manifest = {
        "format": 1,
        "model_id": "org/name",
        "engine": "onnxruntime",
        "files": [{"path": "model.onnx", "size": 3, "sha256": "…"}],
        "text_embedding": SECTION | (section or {}),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def test_a_manifest_is_read(tmp_path: Path) -> None:
    artefact = read_artefact(write(tmp_path))
    assert artefact.model_file == tmp_path / "model.onnx"
    assert artefact.input_names == ("input_ids", "attention_mask")
    assert artefact.truncation_side == "right"


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"has no readable manifest\.json: No such file"):
        read_artefact(tmp_path)


@pytest.mark.parametrize("text", ["{", "\x00"])
def test_broken_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtefactError, match="is not JSON"):
        read_artefact(tmp_path)


@pytest.mark.parametrize("changes", [{"format": 2}, {"format": None}])
def test_another_format(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match="not a manifest of format 1"):
        read_artefact(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dimension": "wide"}, "is incomplete: invalid literal"),
        ({"input_names": None}, "is incomplete"),
        ({"input_names": ["pixel_values"]}, "pixel_values are unknown to this backend; input_ids"),
        ({"dimension": 0}, "dimension and max_seq_length must be above 0"),
        ({"padding_side": "top"}, "must be left or right"),
        ({"default_prompt_name": "query"}, "default_prompt_name is not among the prompts"),
    ],
)
def test_faulty_values(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        read_artefact(write(tmp_path, section))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["text_embedding"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="no 'text_embedding'"):
        read_artefact(folder)


def test_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"model\.onnx is missing; install the model again"):
        read_artefact(tmp_path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"ab")
    with pytest.raises(ArtefactError, match="has 2 bytes instead of 3"):
        read_artefact(tmp_path)


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    artefact = read_artefact(write(tmp_path))
    artefact.tokenizer_file.write_text("{}")
    with pytest.raises(ArtefactError, match=r"tokenizer\.json is not a tokenizer"):
        TextTokenizer(artefact)


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    artefact = read_artefact(write(tmp_path))
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot open model\.onnx: .*Protobuf"):
        open_engine(
            artefact.engine, artefact.model_file, input_names=("input_ids",), output_names=["x"]
        )


def test_an_engine_that_this_backend_lacks(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Unknown engine 'abacus'.* there are: onnxruntime"):
        open_engine("abacus", tmp_path, input_names=(), output_names=["x"])
