"""Which files of a diffusers repository are taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.errors import ArtifactNotAccessible, SourceRefused, UnsafeWeights
from controlplane.registry.files import SourceRules
from controlplane.registry.metadata import read_facts
from controlplane.registry.selection import choose, layout_file, layout_folders

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SMALL = [
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
SAFE = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
HALVES = [name.replace(".safetensors", ".fp16.safetensors") for name in SAFE]
PICKLES = [
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin",
]
NEVER = [
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
    "assets/cat.png",
    "pipeline.py",
    "unet/model.onnx",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/modeling.py",
    "flax/model.msgpack",
    "feature_extractor/preprocessor_config.json",
]


def taken(*names: str, index: Any = INDEX, **rules: Any) -> list[str]:
    assert layout_file(names) == "model_index.json"
    folders = layout_folders("model_index.json", json.dumps(index).encode(), "org/sd")
    return list(choose(names, folders, where="org/sd", rules=SourceRules(**rules)))


def test_plain_safetensors_alone_are_taken_of_all_that_there_is() -> None:
    assert taken(*SMALL, *SAFE, *HALVES, *PICKLES, *NEVER) == sorted([*SMALL, *SAFE])


def test_half_precision_only_where_there_is_nothing_else() -> None:
    assert taken(*SMALL, *HALVES, *PICKLES) == sorted([*SMALL, *HALVES])


def test_pickles_only_where_they_are_allowed() -> None:
    with pytest.raises(UnsafeWeights, match=r"text_encoder/pytorch_model\.bin"):
        taken(*SMALL, *PICKLES)
    assert taken(*SMALL, *PICKLES, allow_pickle=True) == sorted([*SMALL, *PICKLES])


def test_weights_in_parts_come_with_their_index() -> None:
    unet = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    half = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half_index = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    rest = [*SMALL, SAFE[0], SAFE[2]]
    assert taken(*rest, *unet, index, *half, half_index) == sorted([*rest, *unet, index])
    assert taken(*rest, *half, half_index) == sorted([*rest, *half, half_index])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ArtifactNotAccessible, match="no weights in vae/"):
        taken(*SMALL, *SAFE[:2])
    with pytest.raises(ArtifactNotAccessible, match="lacks scheduler/"):
        taken(*[name for name in SMALL if not name.startswith("scheduler")], *SAFE)


@pytest.mark.parametrize("entry", ["..", "a/b", ""])
def test_folders_stay_inside(entry: str) -> None:
    with pytest.raises(ArtifactNotAccessible, match="names the folder"):
        taken(*SMALL, *SAFE, index=INDEX | {entry: ["diffusers", "X"]})


def test_a_pipeline_of_its_own_is_refused() -> None:
    with pytest.raises(SourceRefused, match="a pipeline of its own"):
        taken(*SMALL, *SAFE, index=INDEX | {"_class_name": ["pipeline", "MyPipeline"]})


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000])
def test_a_damaged_index_is_told(content: bytes) -> None:
    with pytest.raises(ArtifactNotAccessible, match="cannot be read"):
        layout_folders("model_index.json", content, "org/sd")


@pytest.mark.parametrize(
    ("index", "card", "task"),
    [
        (INDEX, b"", "txt2img"),
        (INDEX | {"_class_name": "StableDiffusionImg2ImgPipeline"}, b"", "img2img"),
        (INDEX, b"---\npipeline_tag: image-to-image\n---\n", "img2img"),
    ],
)
def test_the_task_is_read_from_the_index(index: Any, card: bytes, task: str) -> None:
    files = {"model_index.json": json.dumps(index).encode(), "README.md": card}
    assert read_facts(files.get)["task_type"].value == task


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("WhisperForConditionalGeneration", "audio2txt"),
        ("Wav2Vec2ForCTC", "audio2txt"),
        ("VitsModel", "txt2audio"),
        ("SpeechT5ForTextToSpeech", "txt2audio"),
        ("YolosForObjectDetection", "object_detection"),
        ("ViTForImageClassification", "classification"),
        ("BertForQuestionAnswering", "question_answering"),
    ],
)
def test_the_task_is_read_from_the_architecture(architecture: str, task: str) -> None:
    files = {"config.json": json.dumps({"architectures": [architecture]}).encode()}
    assert read_facts(files.get)["task_type"].value == task
