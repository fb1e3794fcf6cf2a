"""Task question_answering: an extractive reader becomes an ONNX graph of start and end logits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from converters import exporting
from converters.conversion import fresh_output
from converters.errors import ExportFailed
from converters.exporting import tensor
from converters.manifest import MAX_BATCH_SIZE, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from converters.conversion import Conversion
    from converters.text_head import TextHead
    from converters.tokenization import Tokenization

_AXES = {"start_logits": {0: "batch", 1: "sequence"}, "end_logits": {0: "batch", 1: "sequence"}}
# Those of transformers' question-answering pipeline (4.57).
_WINDOW = 384
_STRIDE = 128
_MAX_ANSWER_TOKENS = 15
_PAIRS = [("what is the cat", "the cat plays in the house."), ("Wo?", "In Köln, am Rhein: 日本")]


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the task question_answering.

    Raises:
        ConversionError: its subclass tells why; `output` is gone then, unless it existed before.
    """
    from converters import text_head

    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        loaded = text_head.load(conversion, "AutoModelForQuestionAnswering", _AXES)
        _require_pairs(loaded, conversion.output)
        done = text_head.export(loaded, conversion)
        facts = exporting.graph_facts(
            done.accepted, done.chosen, loaded.parameters, loaded.weights.dtype
        )
        section = text_head.tokens_section(loaded, done)
        section |= _reading(done.tokenization, conversion.source)
        manifest = exporting.base_manifest(
            conversion,
            backend="question_answering",
            libraries=("torch", "transformers", "onnx"),
            inputs=[tensor("text_input", "BYTES"), tensor("context_input", "BYTES")],
            outputs=[
                tensor("text_output", "BYTES"),
                tensor("score", "FP32"),
                tensor("start", "INT32"),
                tensor("end", "INT32"),
            ],
            max_batch_size=MAX_BATCH_SIZE,
            probe={"inputs": {"text_input": "who?", "context_input": "a health check"}},
            question_answering=section,
            **facts,
        )
        conversion.events.progress("write", 0.0, "writing the manifest")
        return write_manifest(conversion.output, manifest)


def _require_pairs(loaded: TextHead, output: Path) -> None:
    """tokenizer.json must join question and context as transformers' tokenizer does."""
    from converters.tokenization import TOKENIZER_FILE, open_tokenizer

    if loaded.tokenization.padding_side == "left":
        raise ExportFailed("The tokenizer pads on the left, where a question cannot come first.")
    tokenizer = open_tokenizer(output / TOKENIZER_FILE, loaded.tokenization)
    for question, context in _PAIRS:
        expected = loaded.tokenizer(question, context)
        found = tokenizer.encode(question, context)
        same = found.ids == list(expected["input_ids"])
        types = expected.get("token_type_ids")
        if not same or (types is not None and found.type_ids != list(types)):
            raise ExportFailed(
                "The tokenizer's file joins two texts in another way than it should."
            )


def _reading(tokenization: Tokenization, source: Path) -> dict[str, Any]:
    window = min(tokenization.max_seq_length, _WINDOW)
    return {
        "window": window,
        "stride": min(window // 2, _STRIDE),
        "max_answer_tokens": _MAX_ANSWER_TOKENS,
        "may_have_no_answer": _trained_without_answers(source),
    }


def _trained_without_answers(source: Path) -> bool:
    """True for models trained on SQuAD 2.0, by their card: of nothing else can it be seen."""
    try:
        card = (source / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    front = re.match(r"\s*---\n(.*?)\n---", card, re.DOTALL)
    return front is not None and re.search(r"squad_?v2|squad2", front[1], re.I) is not None
