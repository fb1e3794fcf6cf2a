"""Models that write text are known by their config.json."""

from __future__ import annotations

import json

import pytest

from controlplane.registry.metadata import read_facts


@pytest.mark.parametrize(
    ("architecture", "config", "task"),
    [
        ("LlamaForCausalLM", {"model_type": "llama"}, "txt2txt"),
        ("GPT2LMHeadModel", {"model_type": "gpt2"}, "txt2txt"),
        ("T5ForConditionalGeneration", {"model_type": "t5"}, "txt2txt"),
        ("BartForConditionalGeneration", {"model_type": "bart"}, "txt2txt"),
        ("MarianMTModel", {"model_type": "marian"}, "txt2txt"),
        ("BlipForConditionalGeneration", {"model_type": "blip", "vision_config": {}}, "img2txt"),
        ("VisionEncoderDecoderModel", {"model_type": "vision-encoder-decoder"}, "img2txt"),
        ("LlavaForConditionalGeneration", {"model_type": "llava", "vision_config": {}}, "img2txt"),
        ("Qwen2VLForConditionalGeneration", {"vision_config": {}}, "img2txt"),
        ("FuyuForCausalLM", {"model_type": "fuyu", "vision_config": {}}, "img2txt"),
        ("GitForCausalLM", {"model_type": "git"}, "img2txt"),
        # Speech and others are not for us to claim, nor is what is no config at all.
        ("VoxtralForConditionalGeneration", {"model_type": "voxtral"}, None),
        ("SomethingForConditionalGeneration", {"model_type": ["t5"]}, None),
        ("LlamaModel", {"model_type": "llama"}, None),
    ],
)
def test_the_task_follows_from_the_architecture(
    architecture: str, config: dict[str, object], task: str | None
) -> None:
    files = {"config.json": json.dumps({"architectures": [architecture], **config}).encode()}
    facts = read_facts(files.get)
    assert (facts["task_type"].value if "task_type" in facts else None) == task
