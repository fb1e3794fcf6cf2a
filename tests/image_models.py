"""Small random image models with real processors and tokenizers, as `save_pretrained` writes them.

Pictures have 32 x 32 pixels and patches 8 x 8; vectors have 24 components where two towers share a
space. As in `tests.models`, weights come from a fixed seed and are spread widely, so that vectors
of different pictures are far apart. torch and transformers are imported when a builder is called.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from tests import models

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL import Image

EDGE = 32
SHARED = 24
_SQUARE = {"height": EDGE, "width": EDGE}
_SPREAD = 0.3
_SIZES: dict[str, Any] = {
    "hidden_size": models.HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VISION = _SIZES | {"image_size": EDGE, "patch_size": 8}


def tiny_clip(folder: Path, *, alone: bool = False, normalize: bool = False) -> Path:
    """A CLIP of two towers, 40 positions for texts.

    Args:
        alone: the vision tower with its projection only.
        normalize: as sentence-transformers keeps it, in a module CLIPModel before Normalize.
    """
    import transformers

    inner = folder / "0_CLIPModel" if normalize else folder
    tokenizer, size = _clip_tokenizer()
    text = _SIZES | {
        "vocab_size": size,
        "max_position_embeddings": 40,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if alone:
        vision = transformers.CLIPVisionConfig(**_VISION, projection_dim=SHARED)
        _save(inner, transformers.CLIPVisionModelWithProjection(_wide(vision)))
    else:
        config = transformers.CLIPConfig(
            text_config=text, vision_config=_VISION, projection_dim=SHARED
        )
        _save(inner, transformers.CLIPModel(_wide(config)), tokenizer)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": EDGE}, crop_size=_SQUARE
    ).save_pretrained(inner)
    if normalize:
        kinds = [("0_CLIPModel", "CLIPModel"), ("1_Normalize", "Normalize")]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def tiny_siglip(folder: Path, *, second: bool = False) -> Path:
    """A SigLIP: texts padded to 20 tokens, no mask.

    Args:
        second: the tokenizer of SigLIP 2 (byte-pair, lower-casing) instead of sentencepiece's.
    """
    import transformers

    folder.mkdir(parents=True)
    tokenizer = _siglip2_tokenizer() if second else _siglip_tokenizer(folder)
    text = _SIZES | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_size": models.HIDDEN,
    }
    config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    _save(folder, transformers.SiglipModel(_wide(config)), tokenizer)
    transformers.SiglipImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    return folder


def tiny_vit(folder: Path, *, pooler: bool = True) -> Path:
    """A ViT; without its pooler as most repositories of classifiers are."""
    import transformers

    config = transformers.ViTConfig(**_VISION)
    _save(folder, transformers.ViTModel(_wide(config), add_pooling_layer=pooler))
    transformers.ViTImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    return folder


def tiny_dinov2(folder: Path) -> Path:
    """A DINOv2 trained on pictures of 48 x 48: its positions are interpolated to 32 x 32."""
    import transformers

    config = transformers.Dinov2Config(**(_VISION | {"image_size": 48, "mlp_ratio": 2}))
    _save(folder, transformers.Dinov2Model(_wide(config)))
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 36}, crop_size=_SQUARE
    ).save_pretrained(folder)
    return folder


def tiny_convnext(folder: Path) -> Path:
    """A ConvNeXT of two stages: no tokens, a mean as pooled output."""
    import transformers

    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, initializer_range=_SPREAD
    )
    _save(folder, transformers.ConvNextModel(config))
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": EDGE}).save_pretrained(folder)
    return folder


def picture_file(raw: bytes) -> Image.Image:
    """The upright picture that a user of transformers gives to a processor."""
    from backends.images import decode_image

    return decode_image(raw)


def picture_vectors(source: Path, files: list[bytes]) -> np.ndarray[Any, Any]:
    """transformers' own vectors, FP32 [n, D]: its processor, then its model, one by one."""
    import numpy as np
    import torch
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
    model = _own_model(source)
    rows = []
    for raw in files:
        given = processor(images=picture_file(raw), return_tensors="pt")
        with torch.no_grad():
            if hasattr(model, "get_image_features"):
                found = model.get_image_features(**given)
            else:
                found = model(**given)
        vector = getattr(found, "image_embeds", None)
        rows.append(found.pooler_output.flatten(1) if vector is None else vector)
    return np.concatenate([row.numpy() for row in rows])


def text_vectors(source: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """transformers' own vectors of texts, FP32 [n, D]; SigLIP's padded to their full length."""
    import torch
    import transformers

    model = _own_model(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    padding = "max_length" if model.config.model_type == "siglip" else True
    limit = model.config.text_config.max_position_embeddings
    given = tokenizer(
        texts, padding=padding, truncation=True, max_length=limit, return_tensors="pt"
    )
    with torch.no_grad():
        vectors: np.ndarray[Any, Any] = model.get_text_features(**given).pooler_output.numpy()
    return vectors


def _own_model(source: Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    return getattr(transformers, config.architectures[0]).from_pretrained(source).eval()


def _wide(config: Any) -> Any:
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", 0)):
        if part:
            part.initializer_range = _SPREAD
            part.initializer_factor = 8.0
    return config


def _save(folder: Path, model: Any, tokenizer: Any = None) -> None:
    import torch

    generator = torch.Generator().manual_seed(7)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Weights by name, not by the architecture's own rules, some of which give all zeros.
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (_SPREAD if "embed" in name else 0.15))
            else:
                parameter.add_(noise * 0.1)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _clip_tokenizer() -> tuple[Any, int]:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = letters + [f"{letter}</w>" for letter in letters]
    merges = []
    for word in models._WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        piece = parts[0]
        for part in parts[1:]:
            merges.append((piece, part))
            piece += part
            pieces.append(piece)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=40)
    return tokenizer, len(vocab)


def _siglip_tokenizer(folder: Path) -> Any:
    """A sentencepiece model trained on our words, as SigLIP's: no normalisation, no prefix."""
    import sentencepiece
    from transformers import SiglipTokenizer

    words = models._WORDS
    lines = [" ".join(words[i % 7 :: 3]) for i in range(200)] + [models._LETTERS.lower()]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        vocab_size=260,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(buffer.getvalue())
    return SiglipTokenizer(
        vocab_file=str(folder / "spiece.model"),
        model_max_length=20,
        model_input_names=["input_ids"],
    )


def _siglip2_tokenizer() -> Any:
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = list(dict.fromkeys("▁" + models._LETTERS))
    pieces, merges = special + letters, []
    for word in models._WORDS:
        piece = "▁"
        for letter in word:
            merges.append((piece, letter))
            piece += letter
            pieces.append(piece)
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return Siglip2Tokenizer(
        vocab=vocab,
        merges=list(dict.fromkeys(merges)),
        model_max_length=20,
        padding_side="right",
        model_input_names=["input_ids"],
    )


def clip_of_published_size(folder: Path) -> Path:
    """A CLIP ViT-B/32 with 151 million random weights, for measurements."""
    import torch
    import transformers

    tokenizer, _ = _clip_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    torch.manual_seed(7)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=ids)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    return folder
