"""Small random models that generate text, with real tokenizers, as `save_pretrained` writes them.

As in `tests.models`: seeds are fixed, no network, torch is imported when a builder is called. The
weights' spread is wide, so that greedy texts differ from prompt to prompt and do not repeat one
token from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests import models

if TYPE_CHECKING:
    from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system message must come first') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<end>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPTS = (
    "the cat plays in the house and",
    "a river",
    "how are you? 日本語の文章 😀",
    "the small dog eats by the river and the child plays the guitar " * 2,
)
CONTEXT = 128
_SPREAD = 0.4


def tiny_llama(
    folder: Path,
    *,
    chat: bool = True,
    tokenizer: Any = None,
    shard: str = "",
    stored: str = "float32",
    **sizes: Any,
) -> Path:
    """A Llama: rotary positions, two of four key-value heads; a chat template if asked.

    Args:
        tokenizer: another one than the byte-level one of all models here.
        shard: the largest size of a weights file, "20KB" for example; else there is one file.
        stored: the type of its weights, which its configuration names, in torch's words.
        sizes: of its configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or _byte_level(bos=True)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "initializer_range": _SPREAD,
        **_special(tokenizer),
    } | sizes
    model = _built(LlamaForCausalLM, LlamaConfig(**values)).to(getattr(torch, stored))
    return _write(folder, model, tokenizer, shard)


def tiny_gpt2(folder: Path) -> Path:
    """A GPT-2: learned positions, no chat template, penalties in generation_config.json."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _byte_level(bos=False)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        initializer_range=_SPREAD,
        **_special(tokenizer),
    )
    model = _built(GPT2LMHeadModel, config)
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.no_repeat_ngram_size = 3
    return _write(folder, model, tokenizer)


def tiny_mistral(folder: Path) -> Path:
    """A Mistral whose attention sees a window of 8 tokens: not to be padded together."""
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = _byte_level(bos=True)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
        sliding_window=8,
        initializer_range=_SPREAD,
        **_special(tokenizer),
    )
    return _write(folder, _built(MistralForCausalLM, config), tokenizer)


def tiny_t5(folder: Path) -> Path:
    """A T5: relative positions, Unigram tokenizer that ends its inputs with </s>."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    pieces = models._unigram(["<pad>", "</s>", "<unk>"], last="<extra_id_0>")
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=1, model_max_length=CONTEXT)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = _built(T5ForConditionalGeneration, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return _write(folder, model, tokenizer)


def tiny_bart(folder: Path) -> Path:
    """A BART: learned positions, forced first and last tokens, four beams by its own files."""
    from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

    vocab, merges = models._byte_level(["<s>", "<pad>", "</s>", "<unk>"], last="<mask>")
    tokenizer = BartTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=CONTEXT,
        init_std=_SPREAD,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )
    model = _built(BartForConditionalGeneration, config)
    model.generation_config.num_beams = 4
    return _write(folder, model, tokenizer)


def tiny_blip(folder: Path) -> Path:
    """A BLIP: captions, and continues the beginning of one."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    vocab = models._wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"])
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=64)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "bos_token_id": vocab["[DEC]"],
        "sep_token_id": vocab["[SEP]"],
        "eos_token_id": vocab["[SEP]"],
        "pad_token_id": vocab["[PAD]"],
        "initializer_range": _SPREAD,
    }
    vision = sizes | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32)
    model = _built(BlipForConditionalGeneration, config)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    return _write(folder, model, BlipProcessor(images, tokenizer))


def tiny_vit_gpt2(folder: Path) -> Path:
    """A vision encoder and a GPT-2 that reads it, with an image processor and a tokenizer."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    tokenizer = _byte_level(bos=False)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    vision = ViTConfig(hidden_size=32, intermediate_size=64, image_size=32, patch_size=8, **sizes)
    text = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=_SPREAD,
        **_special(tokenizer),
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    model = _built(VisionEncoderDecoderModel, config)
    for name in ("decoder_start", "pad", "eos"):
        value = getattr(config, f"{name}_token_id")
        setattr(model.generation_config, f"{name}_token_id", value)
    _write(folder, model, tokenizer)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tiny_llava(folder: Path) -> Path:
    """A LLaVA: CLIP's vision tower before a Llama, asked through a chat template."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _byte_level(bos=True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**sizes, intermediate_size=64, image_size=32, patch_size=8)
    text = LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
        initializer_range=_SPREAD,
        **_special(tokenizer),
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-1,
        image_seq_length=16,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model = _built(LlavaForConditionalGeneration, config)
    return _write(folder, model, processor)


def _byte_level(*, bos: bool) -> Any:
    """A byte-level BPE tokenizer; with `bos`, texts begin with <s>."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    vocab, merges = models._byte_level(["<pad>", "<unk>", "<s>", "<end>"], last="<mask>")
    core = Tokenizer(kinds.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=["<s>", "$A"], special_tokens=[("<s>", vocab["<s>"])]
        )
    turns = [AddedToken(f"<|{role}|>", special=True) for role in ("system", "user", "assistant")]
    core.add_special_tokens(turns)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<end>",
        model_max_length=CONTEXT,
    )


def word_tokenizer(size: int) -> Any:
    """A tokenizer of so many words, w0 to w<size - 1>, each of which is one token with a text of
    its own: no token decodes to nothing, none ends an answer."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{number}": number for number in range(size)}
    core = Tokenizer(kinds.WordLevel(vocab=vocab, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _special(tokenizer: Any) -> dict[str, int]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _built(model_class: Any, config: Any) -> Any:
    import torch

    torch.manual_seed(7)
    return model_class(config).eval()


def _write(folder: Path, model: Any, processor: Any, shard: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    processor.save_pretrained(folder)
    return folder
