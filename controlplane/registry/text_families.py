"""Which models write text, by their config.json: of text (txt2txt) or of an image (img2txt)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.registry.model import TaskType

if TYPE_CHECKING:
    from collections.abc import Mapping

# Encoder-decoders of text. `…ForConditionalGeneration` alone is also what speech models are called.
_TEXT_TO_TEXT = {
    *(
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "encoder-decoder",
        "fsmt",
        "led",
    ),
    *("longt5", "m2m_100", "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x"),
    *("plbart", "prophetnet", "switch_transformers", "t5", "t5gemma", "umt5"),
}
# Ends of architectures' names that stand for a model with a head that writes.
_WRITES = ("ForConditionalGeneration", "ForCausalLM", "LMHeadModel", "ForVision2Seq", "Text2Text")
_WHOLE_NAMES = {
    "EncoderDecoderModel": TaskType.TXT2TXT,
    "MarianMTModel": TaskType.TXT2TXT,
    "VisionEncoderDecoderModel": TaskType.IMG2TXT,
}
_VISION = {
    "git",
    "kosmos-2",
    "pix2struct",
    "florence2",
}  # vision by another name than vision_config


def writing_task(architecture: str, config: Mapping[str, Any]) -> TaskType | None:
    """The task of a model that writes text; None for one that does not.

    Args:
        architecture: the first of config.json's.
    """
    if architecture in _WHOLE_NAMES:
        return _WHOLE_NAMES[architecture]
    if not architecture.endswith(_WRITES):
        return None
    kind = config.get("model_type")
    if "vision_config" in config or (isinstance(kind, str) and kind in _VISION):
        return TaskType.IMG2TXT
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return TaskType.TXT2TXT
    return TaskType.TXT2TXT if isinstance(kind, str) and kind in _TEXT_TO_TEXT else None
