"""Small random models beyond embeddings: classifiers, readers, diffusion, detection, audio.

Each builder writes a folder as `save_pretrained` does, from a fixed seed, and returns its path.
torch and transformers are imported when a builder is called, not when this module is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests import models

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("bad", "fair", "good")


def text_classifier(folder: Path, *, decoder: bool = False, **config: Any) -> Path:
    """A BERT (or, as `decoder`, a Qwen3 padded on the left) with a classifier of three labels."""
    import transformers

    source = (models.tiny_qwen3 if decoder else models.tiny_bert)(folder / "body")
    kind = "Qwen3ForSequenceClassification" if decoder else "BertForSequenceClassification"
    config = {"id2label": dict(enumerate(LABELS)), "label2id": {}} | config
    return _head(source, folder, getattr(transformers, kind), config)


def reader(folder: Path, *, roberta: bool = False) -> Path:
    """A BERT (or RoBERTa) that gives start and end logits; 128 positions."""
    from transformers import BertForQuestionAnswering, RobertaForQuestionAnswering

    source = (models.tiny_roberta if roberta else models.tiny_bert)(folder / "body")
    kind = RobertaForQuestionAnswering if roberta else BertForQuestionAnswering
    return _head(source, folder, kind, {})


def _head(source: Path, folder: Path, kind: Any, changes: dict[str, Any]) -> Path:
    import shutil

    import torch
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(source, **changes)
    torch.manual_seed(23)
    kind(config).eval().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    shutil.rmtree(source)
    return folder
