"""One request: its prompt as tokens, and how to generate; checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from backends.errors import InputError
from backends.generation.parameters import Generation, read_flag, read_generation
from backends.generation.texts import read_messages, read_text, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.text_generation.artefact import TextGenerationArtefact


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """What one request asks for.

    Attributes:
        prompt: token ids, at least one.
        stream: a response for each piece of text.
    """

    prompt: tuple[int, ...]
    generation: Generation
    stream: bool


def read_request(
    text: bytes | None,
    messages: bytes | None,
    parameters: Mapping[str, Any],
    artefact: TextGenerationArtefact,
    tokenizer: Any,
) -> GenerationRequest:
    """Check a request and make its prompt into tokens.

    `max_tokens` beyond what the context has room for is cut to that: the answer then ends with
    the finish reason `length`, as it would have to anyway.

    Args:
        text, messages: the inputs; None when the request has no such.

    Raises:
        InputError: naming what is wrong, and the figures of a prompt that is too long.
    """
    generation = read_generation(parameters)
    stream = read_flag(parameters, "stream")
    prompt = _prompt(text, messages, artefact, tokenizer)
    room = _room(len(prompt), artefact)
    if generation.max_tokens > room:
        generation = dataclasses.replace(generation, max_tokens=room)
    return GenerationRequest(prompt, generation, stream)


def _prompt(
    text: bytes | None, messages: bytes | None, artefact: TextGenerationArtefact, tokenizer: Any
) -> tuple[int, ...]:
    if (text is None) == (messages is None):
        found = "neither" if text is None else "both"
        raise InputError(f"Exactly one of text_input and messages is needed, got {found}.")
    if messages is not None:
        conversation = read_messages(messages)
        if not artefact.has_chat_template:
            raise InputError(
                f"Model {artefact.model_id} has no chat template: it continues a text_input, "
                "but takes no messages."
            )
        # The template writes the special tokens itself.
        ids = tokenizer(render(tokenizer, conversation), add_special_tokens=False).input_ids
    else:
        ids = tokenizer(read_text(text, "text_input")).input_ids
    if not ids:
        raise InputError("The prompt is empty: this model needs at least one token to begin with.")
    return tuple(int(token) for token in ids)


def _room(prompt: int, artefact: TextGenerationArtefact) -> int:
    """Tokens that an answer may have at most."""
    limit = artefact.context_length
    shared = artefact.kind == "causal"
    if prompt > limit - (1 if shared else 0):
        rest = ", with room for at least one more" if shared else ""
        raise InputError(
            f"The prompt has {prompt:,} tokens; model {artefact.model_id} takes at most "
            f"{limit - (1 if shared else 0):,} (its context is {limit:,} tokens{rest})."
        )
    return limit - prompt if shared else max(1, limit - 1)
