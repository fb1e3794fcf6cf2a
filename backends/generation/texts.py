"""Texts and conversations of a request, checked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from backends.errors import InputError
from backends.request_texts import decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGES = 1000

Message = dict[str, Any]


def read_text(raw: Any, name: str) -> str:
    """One BYTES element as text.

    Raises:
        InputError: not UTF-8, or above 100,000 characters.
    """
    if not isinstance(raw, bytes):
        raise InputError(f"{name} must hold BYTES, got {type(raw).__name__}.")
    return decoded(name, raw)


def read_messages(raw: Any) -> list[Message]:
    """A conversation: a JSON list of objects with a role and a content, both texts.

    Raises:
        InputError: naming the message that is none.
    """
    text = read_text(raw, "messages")
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"messages is not JSON: {_line(error)}.") from error
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list of at least one {role, content}.")
    if len(messages) > MAX_MESSAGES:
        raise InputError(f"messages has {len(messages):,} entries; {MAX_MESSAGES:,} are allowed.")
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise InputError(f"messages.{index} must be an object with role and content.")
    for name in ("role", "content"):
        value = message.get(name)
        if not isinstance(value, str):
            raise InputError(f"messages.{index}.{name} must be a text.")
        _check_unicode(f"messages.{index}.{name}", value)
    return {"role": message["role"], "content": message["content"]}


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise InputError(
            f"{name} is not valid Unicode: a lone surrogate at character {error.start}."
        ) from error


def render(template_owner: Any, messages: Sequence[Message]) -> str:
    """A conversation as the model's chat template writes it, ready for the model's answer.

    Args:
        template_owner: a tokenizer or processor of transformers.

    Raises:
        InputError: the template refuses the conversation, with its words.
    """
    try:
        text: str = template_owner.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise InputError(
            f"The model's chat template refuses these messages: {_line(error)}."
        ) from error
    return text


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
