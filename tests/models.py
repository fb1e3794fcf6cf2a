"""Small random HuggingFace models with real tokenizers, written as `save_pretrained` writes them.

Weights come from a fixed seed and vocabularies are written out here, so that two builds are the
same byte for byte and need no network. The weights' spread is wide (0.3 instead of 0.02): vectors
of different texts are far apart, so a test that compares them can fail.

Each `tiny_*` builder writes a sentence-transformers folder (modules.json, 1_Pooling and, by
default, 2_Normalize) and returns its path. torch and transformers are imported when a builder is
called, not when this module is.
"""

from __future__ import annotations

import json
import os
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

HIDDEN = 32
_SPREAD = 0.3
_WORD_LIST = """
    the a of and to in is are you we how what where cat dog house tree water man
    woman child play plays playing eat eats river music guitar search query document
    model vector sentence embedding fast slow small large red green blue one two
    three city north south light
"""
_WORDS = _WORD_LIST.split()
_LETTERS = (
    string.ascii_letters + string.digits + string.punctuation + "äöüßéèñçøåžšłığæœ"
    "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГПРС" + "αβγδεζηθικλμνξοπρστυφχψωςΑΣ" + "אבגדהוזחטי"
    "ابتثجحخدذرز" + "日本語中文的是不我一人大こんにちはカタナ" + "한국어안녕" + "हिंदी" + "😀🚀❤👍"
)

# Texts that tell implementations apart: scripts, cases, blanks, emoji, special tokens, length.
TEXTS: tuple[str, ...] = (
    "the cat plays in the house",
    "The CAT Plays in the House",
    "a",
    "",
    "   ",
    "\n\t",
    "how are you?  Two  spaces, and: punctuation...",
    "Ein Satz mit Umlauten: äöü und ß, naïve café",
    "Привет, как дела? ВСЁ ХОРОШО",
    "ΟΔΥΣΣΕΥΣ καὶ ὁ λόγος",
    "日本語の文章と中文的句子",
    "한국어 안녕 हिंदी अनुच्छेद",
    "שלום עולם مرحبا بالعالم",
    "😀🚀 emoji ❤️ in text 👩‍👩‍👧",
    "[MASK] <s> [SEP] special looking words </s>",
    "word " * 9,
    "the small dog eats by the river and the child plays the guitar " * 3,
    "a very long text that goes on and on without an end in sight " * 60,
)


def tiny_bert(folder: Path, **sentence: Any) -> Path:
    """A BERT of 2 layers, width 32, 128 positions, lower-casing WordPiece tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocab = _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=128)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=_SPREAD,
    )
    return _write(folder, BertModel, config, tokenizer, **sentence)


def tiny_distilbert(folder: Path, **sentence: Any) -> Path:
    """A DistilBERT: no token types; cased WordPiece tokenizer."""
    from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizer

    vocab = _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer = DistilBertTokenizer(vocab=vocab, do_lower_case=False, model_max_length=128)
    config = DistilBertConfig(
        vocab_size=len(vocab),
        dim=HIDDEN,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=128,
        initializer_range=_SPREAD,
    )
    return _write(folder, DistilBertModel, config, tokenizer, **sentence)


def tiny_roberta(folder: Path, **sentence: Any) -> Path:
    """A RoBERTa: byte-level BPE, positions counted from the padding id, one token type."""
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    vocab, merges = _byte_level(["<s>", "<pad>", "</s>", "<unk>"], last="<mask>")
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=128)
    return _write(
        folder, RobertaModel, RobertaConfig(**_roberta_sizes(len(vocab))), tokenizer, **sentence
    )


def tiny_xlm_roberta(folder: Path, **sentence: Any) -> Path:
    """An XLM-RoBERTa: SentencePiece-like Unigram tokenizer."""
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    vocab = _unigram(["<s>", "<pad>", "</s>", "<unk>"], last="<mask>")
    tokenizer = XLMRobertaTokenizer(vocab=vocab, model_max_length=128)
    config = XLMRobertaConfig(**_roberta_sizes(len(vocab)))
    return _write(folder, XLMRobertaModel, config, tokenizer, **sentence)


def tiny_mpnet(folder: Path, **sentence: Any) -> Path:
    """An MPNet: relative position buckets beside RoBERTa-style positions."""
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

    vocab = _wordpiece(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"])
    tokenizer = MPNetTokenizer(vocab=vocab, model_max_length=128)
    config = MPNetConfig(**_roberta_sizes(len(vocab)))
    return _write(folder, MPNetModel, config, tokenizer, **sentence)


def tiny_modernbert(folder: Path, **sentence: Any) -> Path:
    """A ModernBERT of 4 layers: rotary positions, global and local (window 16) attention."""
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer, size = _generic_byte_level("[CLS]", "[SEP]")
    config = ModernBertConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        local_attention=16,
        global_attn_every_n_layers=2,
        initializer_range=_SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return _write(folder, ModernBertModel, config, tokenizer, **sentence)


def tiny_qwen3(folder: Path, **sentence: Any) -> Path:
    """A Qwen3 body: decoder, grouped queries, padding on the left, last-token pooling."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer, size = _generic_byte_level(None, "<|endoftext|>", padding_side="left")
    config = Qwen3Config(vocab_size=size, head_dim=8, **_decoder_sizes(tokenizer))
    return _write(folder, Qwen3Model, config, tokenizer, **{"pooling": "lasttoken"} | sentence)


def tiny_llama(folder: Path, **sentence: Any) -> Path:
    """A Llama body: decoder, padding on the right, last-token pooling."""
    from transformers import LlamaConfig, LlamaModel

    tokenizer, size = _generic_byte_level("<s>", "</s>")
    config = LlamaConfig(vocab_size=size, **_decoder_sizes(tokenizer))
    return _write(folder, LlamaModel, config, tokenizer, **{"pooling": "lasttoken"} | sentence)


def tiny_fnet(folder: Path, **sentence: Any) -> Path:
    """An FNet: its Fourier transform is beyond the TorchScript exporter."""
    from transformers import BertTokenizer, FNetConfig, FNetModel

    vocab = _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=32)
    config = FNetConfig(
        vocab_size=len(vocab),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=_SPREAD,
    )
    return _write(folder, FNetModel, config, tokenizer, **sentence)


def tiny_t5(folder: Path, **sentence: Any) -> Path:
    """A T5 encoder-decoder, of which embedding uses the encoder; no limit on positions."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    vocab = _unigram(["<pad>", "</s>", "<unk>"], last="<extra_id_0>")
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=1, model_max_length=128)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=HIDDEN,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return _write(folder, T5ForConditionalGeneration, config, tokenizer, **sentence)


def sentence_files(
    folder: Path,
    *,
    pooling: str | tuple[str, ...] | dict[str, Any] = "mean",
    normalize: bool = True,
    dense: dict[str, Any] | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    transformer: dict[str, Any] | None = None,
    dimension: int = HIDDEN,
) -> None:
    """Write what sentence-transformers adds to a model's folder.

    Args:
        pooling: a mode, several (concatenated), or the whole content of 1_Pooling/config.json.
        dense: content of 2_Dense/config.json; its weights are random from a fixed seed.
        transformer: content of sentence_bert_config.json, left out when None.
    """
    parts = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    paths = ["", "1_Pooling"]
    if not isinstance(pooling, dict):
        mode = pooling if isinstance(pooling, str) else list(pooling)
        pooling = {"embedding_dimension": dimension, "pooling_mode": mode}
    _json(folder / "1_Pooling/config.json", pooling)
    if dense is not None:
        parts.append("sentence_transformers.models.Dense")
        paths.append("2_Dense")
        _dense(folder / "2_Dense", dense)
    if normalize:
        parts.append("sentence_transformers.models.Normalize")
        paths.append(f"{len(paths)}_Normalize")
        (folder / paths[-1]).mkdir()
    entries = zip(range(len(parts)), paths, parts, strict=True)
    _json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, path, kind in entries],
    )
    if prompts is not None:
        config = {"prompts": prompts, "default_prompt_name": default_prompt_name}
        _json(folder / "config_sentence_transformers.json", config)
    if transformer is not None:
        _json(folder / "sentence_bert_config.json", transformer)


def add_layer_norm(folder: Path) -> None:
    """Append Dropout and a LayerNorm with weights of its own to modules.json."""
    import torch
    from safetensors.torch import save_file

    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for kind in ("Dropout", "LayerNorm"):
        number = len(modules)
        path = f"{number}_{kind}"
        module = {"idx": number, "name": str(number), "path": path}
        modules.append(module | {"type": f"sentence_transformers.models.{kind}"})
    _json(folder / modules[-2]["path"] / "config.json", {"dropout": 0.2})
    _json(folder / modules[-1]["path"] / "config.json", {"dimension": HIDDEN})
    torch.manual_seed(13)
    weights = {f"norm.{name}": torch.randn(HIDDEN) for name in ("weight", "bias")}
    save_file(weights, folder / modules[-1]["path"] / "model.safetensors")
    _json(folder / "modules.json", modules)


def shard(folder: Path, size: str) -> None:
    """Have the weights of a model lie in several files of at most this size, with an index."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=size)


def artefact_vectors(artefact: Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of `texts`, all in one batch, from what the manifest says alone.

    A second reading of the contract between converters and backends, written here on purpose.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer, normalizers

    facts = json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))["text_embedding"]
    tokenizer = Tokenizer.from_file(str(artefact / facts["tokenizer_file"]))
    tokenizer.enable_truncation(facts["max_seq_length"], direction=facts["truncation_side"])
    tokenizer.enable_padding(
        direction=facts["padding_side"],
        pad_id=facts["pad_token_id"],
        pad_type_id=facts["pad_token_type_id"],
    )
    if facts["do_lower_case"]:
        steps = [normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    prompt = facts["prompts"].get(facts["default_prompt_name"], "")
    encodings = tokenizer.encode_batch([prompt + text for text in texts])
    columns = {
        "input_ids": [e.ids for e in encodings],
        "attention_mask": [e.attention_mask for e in encodings],
        "token_type_ids": [e.type_ids for e in encodings],
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(artefact / facts["model_file"]), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: np.array(columns[name], dtype=np.int64) for name in facts["input_names"]}
    vectors: NDArray[np.float32] = session.run([facts["output_name"]], feeds)[0]
    return vectors


def _write(folder: Path, model_class: Any, config: Any, tokenizer: Any, **sentence: Any) -> Path:
    import torch

    torch.manual_seed(7)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():  # all-one scales and zero shifts would hide a lost layer
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sentence_files(folder, **sentence)
    return folder


def _dense(folder: Path, config: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    _json(folder / "config.json", config)
    torch.manual_seed(11)
    layer = torch.nn.Linear(
        config["in_features"], config["out_features"], bias=config.get("bias", True)
    )
    weights = {f"linear.{name}": value for name, value in layer.state_dict().items()}
    if config.get("use_residual") and config["in_features"] != config["out_features"]:
        weights["residual.weight"] = torch.randn(config["out_features"], config["in_features"])
    save_file(weights, folder / "model.safetensors")


def _roberta_sizes(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,  # 128 and the two below the padding id, as RoBERTa's 514
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "type_vocab_size": 1,
        "initializer_range": _SPREAD,
    }


def _decoder_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "initializer_range": _SPREAD,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _wordpiece(special: list[str]) -> dict[str, int]:
    letters = list(dict.fromkeys(_LETTERS))
    pieces = special + letters + [f"##{c}" for c in letters] + _WORDS
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _byte_level(special: list[str], last: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = special + sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        piece = "Ġ"
        for letter in word:
            merges.append((piece, letter))
            piece += letter
            pieces.append(piece)
    pieces.append(last)
    return {p: i for i, p in enumerate(dict.fromkeys(pieces))}, list(dict.fromkeys(merges))


def _unigram(special: list[str], last: str) -> list[tuple[str, float]]:
    pieces = [(piece, 0.0) for piece in special]
    pieces += [("▁" + word, -4.0) for word in _WORDS]
    pieces += [(letter, -8.0) for letter in dict.fromkeys("▁" + _LETTERS)]
    return [*pieces, (last, 0.0)]


def _generic_byte_level(
    first: str | None, end: str, padding_side: str = "right"
) -> tuple[Any, int]:
    """A byte-level BPE tokenizer whose template adds `first` and `end`; with its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [token for token in ("<pad>", "<unk>", first, end) if token is not None]
    vocab, merges = _byte_level(special, last="<mask>")
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends = [token for token in (first, end) if token is not None]
    core.post_processor = processors.TemplateProcessing(
        single=[*([first] if first else []), "$A", end],
        special_tokens=[(token, vocab[token]) for token in ends],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=first,
        cls_token=first,
        eos_token=end,
        sep_token=end,
        padding_side=padding_side,
        model_max_length=128,
    )
    return tokenizer, len(vocab)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
