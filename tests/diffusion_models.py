"""Small random pipelines of diffusers, most of them for pictures of 64 x 64 pixels.

Each builder writes a folder as `save_pretrained` does, from a fixed seed, and returns its path.
torch and diffusers are imported when a builder is called, not when this module is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests import generation_models, models

if TYPE_CHECKING:
    from pathlib import Path


def stable_diffusion(folder: Path) -> Path:
    """A Stable Diffusion of 32 channels, without a safety checker."""
    return _stable_diffusion(folder, "StableDiffusionPipeline", channels=4)


def instruct_pix2pix(folder: Path) -> Path:
    """An InstructPix2Pix: the picture's latents stand beside the noise."""
    return _stable_diffusion(folder, "StableDiffusionInstructPix2PixPipeline", channels=8)


def _stable_diffusion(folder: Path, kind: str, *, channels: int) -> Path:
    import diffusers
    import torch

    torch.manual_seed(5)
    unet = _unet(in_channels=channels, cross_attention_dim=32)
    vae = _autoencoder()
    tokenizer = _clip_tokenizer()
    pipe = getattr(diffusers, kind)(
        unet=unet,
        vae=vae,
        text_encoder=_clip_text("CLIPTextModel", len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """An SDXL: two text encoders, the second one pooled, and the picture's size as a condition."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(5)
    unet = _unet(
        in_channels=4,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,  # six sizes of 8, and 32 of the pooled text
    )
    tokenizer = _clip_tokenizer()
    pipe = StableDiffusionXLPipeline(
        unet=unet,
        vae=_autoencoder(),
        text_encoder=_clip_text("CLIPTextModel", len(tokenizer)),
        text_encoder_2=_clip_text("CLIPTextModelWithProjection", len(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=_clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"),
    )
    pipe.save_pretrained(folder)
    return folder


def pixart(folder: Path) -> Path:
    """A PixArt-alpha: a transformer in the place of the U-Net, a T5 in that of CLIP."""
    import shutil

    import torch
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5EncoderModel, T5Tokenizer

    text = generation_models.tiny_t5(folder / "t5")
    torch.manual_seed(5)
    transformer = PixArtTransformer2DModel(
        sample_size=32,  # 256 pixels: it knows the aspect ratios of 256, 512 and 1024 alone
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    pipe = PixArtAlphaPipeline(
        tokenizer=T5Tokenizer.from_pretrained(text),
        text_encoder=T5EncoderModel.from_pretrained(text),
        vae=_autoencoder(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.save_pretrained(folder)
    shutil.rmtree(text)
    return folder


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
        **config,
    ).eval()


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=64,
    ).eval()


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocab, merges = models._byte_level(["<|startoftext|>"], last="<|endoftext|>")
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _clip_text(kind: str, vocab_size: int) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    return getattr(transformers, kind)(config).eval()
