"""Which weight files are taken, and which are refused before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.errors import ArtifactNotAccessible, UnsafeWeights
from converters.weights import find_weights

if TYPE_CHECKING:
    from pathlib import Path


def shards(folder: Path) -> list[Path]:
    """Two shards of 6 and 10 numbers, listed in an index."""
    files = [folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({"a": np.zeros((2, 3), np.float16)}, files[0])
    save_file({"b": np.zeros(8, np.float32), "c": np.zeros(2, np.int64)}, files[1])
    index = {"weight_map": {"a": files[0].name, "b": files[1].name, "c": files[1].name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def test_one_file(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float16)}, tmp_path / "model.safetensors")
    found = find_weights(tmp_path, allow_pickle=False)
    assert [file.name for file in found.files] == ["model.safetensors"]
    assert (found.safe, found.elements, found.dtype) == (True, 6, "float16")


def test_shards(tmp_path: Path) -> None:
    files = shards(tmp_path)
    found = find_weights(tmp_path, allow_pickle=False)
    assert list(found.files) == files
    assert (found.elements, found.dtype) == (16, "float32")  # most of the numbers


def test_shard_missing(tmp_path: Path) -> None:
    shards(tmp_path)[1].unlink()
    with pytest.raises(ArtifactNotAccessible, match=r"00002-of-00002.*is missing"):
        find_weights(tmp_path, allow_pickle=False)


def test_shard_outside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors")
    index = {"weight_map": {"a": "../x.safetensors"}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactNotAccessible):
        find_weights(tmp_path / "model", allow_pickle=False)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_index_malformed(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ArtifactNotAccessible, match="index"):
        find_weights(tmp_path, allow_pickle=False)


def test_safetensors_before_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    assert find_weights(tmp_path, allow_pickle=True).safe


def test_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 100)
    with pytest.raises(UnsafeWeights, match=r"pytorch_model\.bin is a pickle"):
        find_weights(tmp_path, allow_pickle=False)
    found = find_weights(tmp_path, allow_pickle=True)
    assert (found.safe, found.elements, found.dtype) == (False, 50, None)


def test_weights_of_other_frameworks_only(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(ArtifactNotAccessible, match="has no weights"):
        find_weights(tmp_path, allow_pickle=True)
