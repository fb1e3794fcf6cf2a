"""Small random models beyond embeddings: classifiers, readers, detection, audio.

Each builder writes a folder as `save_pretrained` does, from a fixed seed, and returns its path.
torch and transformers are imported when a builder is called, not when this module is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests import generation_models, models

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


def inference_model(folder: Path) -> Path:
    """A BART that says whether a second text follows from the first: facebook/bart-large-mnli's."""
    from transformers import BartForSequenceClassification

    source = generation_models.tiny_bart(folder / "body")
    labels = {"id2label": dict(enumerate(("contradiction", "neutral", "entailment")))}
    return _head(source, folder, BartForSequenceClassification, labels | {"label2id": {}})


def reranker(folder: Path) -> Path:
    """A cross-encoder as sentence-transformers saves it: one logit, which is its score."""
    text_classifier(folder, id2label={0: "LABEL_0"}, num_labels=1)
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def image_classifier(folder: Path) -> Path:
    """A ViT for pictures of 32 x 32 pixels with three labels."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(29)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
        id2label=dict(enumerate(LABELS)),
    )
    ViTForImageClassification(config).eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


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


def detector(folder: Path, *, detr: bool = True) -> Path:
    """A DETR over a tiny ResNet, or a YOLOS; four labels."""
    import torch
    import transformers as t

    torch.manual_seed(31)
    labels = {"id2label": dict(enumerate(("cat", "dog", "tree", "house")))}
    if detr:
        backbone = t.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            out_features=["stage2"],
        )
        config = t.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=12,
            init_xavier_std=4.0,
            **labels,
        )
        model, processor = t.DetrForObjectDetection(config), t.DetrImageProcessorPil
    else:
        config = t.YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=[64, 64],
            patch_size=16,
            num_detection_tokens=10,
            initializer_range=0.5,
            **labels,
        )
        model, processor = t.YolosForObjectDetection(config), t.YolosImageProcessorPil
    model.eval().save_pretrained(folder)
    processor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def ctc_listener(folder: Path) -> Path:
    """A Wav2Vec2 that hears letters."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    torch.manual_seed(41)
    folder.mkdir(parents=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    vocab = folder / "letters.json"
    vocab.write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocab), word_delimiter_token="|")
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2,
        initializer_range=2.0,
        pad_token_id=0,
    )
    Wav2Vec2ForCTC(config).eval().save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    vocab.unlink()
    return folder


def whisper(folder: Path) -> Path:
    """A Whisper of two languages, with timestamps; 2 seconds a window."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    torch.manual_seed(43)
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    special += ["<|notimestamps|>", *(f"<|{n * 0.02:.2f}|>" for n in range(1501))]
    vocab, merges = models._byte_level([], last="Ġend")
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=100,
        max_target_positions=32,
        init_std=1.0,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        max_length=24,
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def bark(folder: Path, voices: tuple[str, ...] = ("v2/en_speaker_1", "de_speaker_0")) -> Path:
    """A Bark of one narrow layer each that says a third of a second; with presets of voices."""
    import numpy as np
    import torch
    import transformers as t
    from transformers.models.bark import generation_configuration_bark as rules

    vocab = models._wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer = t.BertTokenizer(vocab=vocab)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 8}
    codec = t.EncodecConfig(num_filters=2, hidden_size=8, codebook_dim=8, num_lstm_layers=1)
    config = t.BarkConfig(
        semantic_config=t.BarkSemanticConfig(input_vocab_size=129_600, **sizes).to_dict(),
        coarse_acoustics_config=t.BarkCoarseConfig(
            input_vocab_size=12_096, output_vocab_size=12_096, **sizes
        ).to_dict(),
        fine_acoustics_config=t.BarkFineConfig(
            input_vocab_size=1_056, output_vocab_size=1_056, **sizes
        ).to_dict(),
        codec_config=codec.to_dict(),
    )
    torch.manual_seed(53)
    model = t.BarkModel(config).eval()
    model.save_pretrained(folder)
    generation = rules.BarkGenerationConfig(
        semantic_config=rules.BarkSemanticGenerationConfig(max_new_tokens=16).to_dict(),
        coarse_acoustics_config=rules.BarkCoarseGenerationConfig().to_dict(),
        fine_acoustics_config=rules.BarkFineGenerationConfig().to_dict(),
    )
    # by hand: transformers 5 cannot save it
    (folder / "generation_config.json").write_text(json.dumps(generation.to_dict()))
    noise = np.random.default_rng(3)
    presets = {
        voice: {
            "semantic_prompt": noise.integers(0, 10_000, 40),
            "coarse_prompt": noise.integers(0, 1_024, (2, 60)),
            "fine_prompt": noise.integers(0, 1_024, (8, 60)),
        }
        for voice in voices
    }
    paths = {}
    for voice, arrays in presets.items():
        paths[voice] = {key: f"speaker_embeddings/{voice}_{key}.npy" for key in arrays}
        for key, array in arrays.items():
            file = folder / paths[voice][key]
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, array, allow_pickle=False)
    tokenizer.save_pretrained(folder)
    (folder / "speaker_embeddings_path.json").write_text(
        json.dumps({"repo_or_path": "suno/bark", **paths})
    )
    return folder


def speaker(folder: Path, *, speakers: int = 1) -> Path:
    """A VITS that speaks letters, at 16,000 Hz; without noise, so that it repeats itself."""
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(47)
    folder.mkdir(parents=True)
    vocab = folder / "letters.json"
    vocab.write_text(json.dumps({c: n for n, c in enumerate("_ abcdefghijklmnopqrstuvwxyz")}))
    tokenizer = VitsTokenizer(str(vocab), pad_token="_", unk_token="_", phonemize=False)
    config = VitsConfig(
        vocab_size=28,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=9,
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        wavenet_dilation_rate=1,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        noise_scale=0.0,
        noise_scale_duration=0.0,
        use_stochastic_duration_prediction=False,
        duration_predictor_filter_channels=16,
    )
    VitsModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vocab.unlink()
    return folder
