"""What a model is asked about an image: text or conversation, by its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.errors import InputError
from backends.generation.texts import read_messages, read_text, render

if TYPE_CHECKING:
    from backends.generation.texts import Message
    from backends.image_to_text.artefact import ImageToTextArtefact

# What a chat model is asked when the request asks nothing.
DEFAULT_QUESTION = "Describe the image."


def read_prompt(
    text: bytes | None, messages: bytes | None, artefact: ImageToTextArtefact, processor: Any
) -> str | None:
    """The text that goes with the image, in the model's own form; None for none.

    Raises:
        InputError: the model takes no such, or both are given.
    """
    if text is not None and messages is not None:
        raise InputError("Only one of text_input and messages may be given, got both.")
    if artefact.kind == "chat":
        return render(processor, _conversation(text, messages))
    if messages is not None:
        raise InputError(f"Model {artefact.model_id} has no chat template: it takes no messages.")
    if text is None:
        return None
    if artefact.kind == "encoder_decoder":
        raise InputError(
            f"Model {artefact.model_id} takes an image alone: it cannot be given a text_input."
        )
    return _with_image_token(read_text(text, "text_input"), processor)


def _conversation(text: bytes | None, messages: bytes | None) -> list[Message]:
    """Messages in the form that templates for images want; the image is in the first question."""
    if messages is None:
        question = DEFAULT_QUESTION if text is None else read_text(text, "text_input")
        plain = [{"role": "user", "content": question}]
    else:
        plain = read_messages(messages)
    conversation: list[Message] = [
        {"role": each["role"], "content": [{"type": "text", "text": each["content"]}]}
        for each in plain
    ]
    asking = next((each for each in conversation if each["role"] == "user"), None)
    if asking is None:
        raise InputError("messages has none of the role user, which the image would belong to.")
    asking["content"].insert(0, {"type": "image"})
    return conversation


def _with_image_token(text: str, processor: Any) -> str:
    """Models that mark the image's place in the text: at its beginning, if the user did not."""
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str) or token in text:
        return text
    return f"{token}\n{text}"
