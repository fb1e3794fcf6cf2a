"""Which token comes next: transformers' own processors of the scores, random numbers of ours."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import torch

from backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.generation.parameters import Generation


class Sampler:
    """Chooses the tokens of one request.

    The processors are those that `generate` would take: the model's generation_config.json (also
    forced and suppressed tokens, bad words, minimal lengths) under the request's parameters. Random
    numbers come from a generator of the request's own, on the CPU, so that neither the requests
    that are computed beside it nor the device change what a seed gives.
    """

    def __init__(
        self,
        model: Any,
        asked: Generation,
        *,
        prompt: Sequence[int],
        encoder_prompt: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            prompt: the decoder's tokens so far; a penalty for repetitions counts them too.
            encoder_prompt: an encoder-decoder's input.
        """
        self._ids = torch.tensor([list(prompt)], dtype=torch.long)
        self._samples = asked.samples
        config = configuration(model, asked, len(prompt))
        encoded = None if encoder_prompt is None else torch.tensor([list(encoder_prompt)])
        self._processors = model._get_logits_processor(
            config, input_ids_seq_length=len(prompt), encoder_input_ids=encoded, device="cpu"
        )
        self._random = torch.Generator().manual_seed(
            secrets.randbits(63) if asked.seed is None else asked.seed
        )

    def choose(self, scores: torch.Tensor) -> int:
        """The next token.

        Args:
            scores: the model's logits [vocabulary], any floating type and device.

        Raises:
            EngineError: the model computed no numbers.
        """
        scores = scores.to(device="cpu", dtype=torch.float32)[None]
        if bool(torch.isnan(scores).any()):
            raise EngineError("The model computed scores that are no numbers (NaN).")
        if self._processors:
            scores = self._processors(self._ids, scores)
        if self._samples:
            shares = torch.softmax(scores, dim=-1)
            token = int(torch.multinomial(shares, 1, generator=self._random).item())
        else:
            token = int(torch.argmax(scores, dim=-1).item())
        if self._processors:  # nobody else looks at them
            self._ids = torch.cat([self._ids, torch.tensor([[token]])], dim=-1)
        return token


def generate_options(model: Any, asked: Generation) -> dict[str, Any]:
    """What `generate` is to be told.

    Beams are switched off: a token that was sent cannot be taken back, and the same model gives
    the same text whether it is streamed or not.
    """
    own = model.generation_config
    values = {
        "do_sample": asked.samples,
        "num_beams": 1,
        "num_return_sequences": 1,
        "max_new_tokens": asked.max_tokens,
        "repetition_penalty": asked.repetition_penalty,
    }
    if asked.samples:
        values |= {
            "temperature": asked.temperature,
            "top_p": own.top_p if asked.top_p is None else asked.top_p,
            # Not transformers' 50, which nobody asked for.
            "top_k": (own.top_k or 0) if asked.top_k is None else asked.top_k,
        }
    return {name: value for name, value in values.items() if value is not None}


def configuration(model: Any, asked: Generation, prompt_length: int) -> Any:
    """transformers' configuration of one generation whose steps we take ourselves."""
    config, _ = model._prepare_generation_config(None, **generate_options(model, asked))
    config.max_length = prompt_length + asked.max_tokens  # where a forced end belongs
    model._prepare_special_tokens(config, True, device="cpu")
    return config


def end_tokens(model: Any) -> frozenset[int]:
    """Tokens that end a generation, by the model's generation_config.json; BLIP's own else."""
    named = model.generation_config.eos_token_id
    listed = list(named) if isinstance(named, list) else [named]
    if model.config.model_type == "blip":  # its generate takes this one
        listed.append(model.config.text_config.sep_token_id)
    return frozenset(int(token) for token in listed if token is not None)
