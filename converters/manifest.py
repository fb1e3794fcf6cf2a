"""The artefact's manifest: what control plane and backends need to know of it.

Byte-stable but for `candidates`, what the engines that were tried took: the same source, converter,
machine and choice give the same file, so it holds no other times, no paths, and figures rounded to
what repeats.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from converters.engines import Chosen
    from converters.specs import SentenceModel
    from converters.tokenization import Tokenization
    from converters.verify import Parity

MANIFEST_FILE = "manifest.json"
MAX_BATCH_SIZE = 32


@dataclass(frozen=True)
class Identity:
    """Which version of which model the artefact is; as given on the command line."""

    model_id: str
    version: str
    revision: str | None = None
    source_checksum: str | None = None


@dataclass(frozen=True)
class Exported:
    """Facts of one accepted export."""

    parity: Parity
    dimension: int
    parameters: int
    dtype: str
    opset: int | None
    exporter: str
    chosen: Chosen
    tokenizer_file: str


def text_embedding_manifest(
    identity: Identity, model: SentenceModel, tokenization: Tokenization, exported: Exported
) -> dict[str, Any]:
    """The manifest of a txt2embed artefact, `files` still missing; shapes without batch."""
    output = {"name": "embedding", "datatype": "FP32", "shape": [exported.dimension]}
    return {
        "format": 1,
        "model_id": identity.model_id,
        "version": identity.version,
        "revision": identity.revision,
        "source_checksum": identity.source_checksum,
        "task_type": "txt2embed",
        "backend": "text_embedding",
        "engine": exported.chosen.engine,
        "precision": exported.chosen.precision,
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [output],
        "max_batch_size": MAX_BATCH_SIZE,
        "text_embedding": _tokens_to_vector(model, tokenization, exported),
        "parity": {
            "reference": "pytorch fp32",
            "texts": exported.parity.texts,
            "min_cosine": round(exported.parity.min_cosine, 7),
            "max_abs_diff": float(f"{exported.parity.max_abs_diff:.1e}"),
        },
        "candidates": exported.chosen.table,
        "parameters": exported.parameters,
        "dtype": exported.dtype,
        "converter": _versions() | _export_facts(exported),
    }


def _export_facts(exported: Exported) -> dict[str, Any]:
    opset = {} if exported.opset is None else {"opset": exported.opset}
    return opset | {"exporter": exported.exporter}


def _tokens_to_vector(
    model: SentenceModel, tokenization: Tokenization, exported: Exported
) -> dict[str, Any]:
    return {
        "model_file": exported.chosen.model_file.name,
        "tokenizer_file": exported.tokenizer_file,
        "input_names": list(tokenization.input_names),
        "output_name": "sentence_embedding",
        "dimension": exported.dimension,
        "max_seq_length": tokenization.max_seq_length,
        "do_lower_case": tokenization.do_lower_case,
        "pad_token_id": tokenization.pad_token_id,
        "pad_token_type_id": tokenization.pad_token_type_id,
        "padding_side": tokenization.padding_side,
        "truncation_side": tokenization.truncation_side,
        "normalized": model.normalized,
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the digests of all files in `folder`, write manifest.json there, and return it all."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [_described(path, path.relative_to(folder).as_posix()) for path in files]
    complete = manifest | {"files": sorted(listed, key=lambda file: file["path"])}
    text = json.dumps(complete, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return complete


def _described(path: Path, name: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"path": name, "size": path.stat().st_size, "sha256": digest.hexdigest()}


def _versions() -> dict[str, str]:
    names = ("modelmora", "torch", "transformers", "onnx")
    # Without the build's label (`+cpu`): it does not change the artefact.
    return {name: metadata.version(name).partition("+")[0] for name in names}
