"""Computes the next scores of running generations, one token each, together where that is sound.

Whether a model's requests may be padded and computed side by side, the converter found out and
wrote into the manifest. Other models (encoder-decoders, sliding windows, recurrent states) compute
their requests one after the other, a step each in turn.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache

from backends.text_generation.cache import Batch, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Tokens of a prompt computed at once: others wait for so long, and a cancellation too.
CHUNK = 512

Scores = torch.Tensor  # [vocabulary]


class State(Protocol):
    """One generation's place in a decoder; each decoder has its own kind."""


class Decoder(Protocol):
    """What the scheduler asks of a model."""

    def begin(self, prompt: Sequence[int]) -> tuple[State, Iterator[Scores | None]]:
        """A new generation; the iterator computes its prompt, a part each time it is advanced.

        It yields None until the prompt is through, then the scores of the first token.
        """

    def step(self, states: Sequence[Any], tokens: Sequence[int]) -> list[Scores | Exception]:
        """Take one more token of each and give the scores of the next, or what broke it."""


class TogetherDecoder:
    """Causal models of plain attention: one batch, padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def begin(self, prompt: Sequence[int]) -> tuple[Row, Iterator[Scores | None]]:
        state = Row(Batch([], 0), 0, 0)
        return state, self._prefill(state, prompt)

    def _prefill(self, state: Row, prompt: Sequence[int]) -> Iterator[Scores | None]:
        cache = DynamicCache(config=self._model.config)
        for start in range(0, len(prompt), CHUNK):
            part = torch.tensor([list(prompt[start : start + CHUNK])], device=self._model.device)
            output = self._run(input_ids=part, past_key_values=cache, **self._last_only)
            if start + CHUNK < len(prompt):
                yield None
        state.batch, state.length = Batch.alone(cache), len(prompt)
        yield output.logits[0, -1]

    def step(self, states: Sequence[Row], tokens: Sequence[int]) -> list[Scores | Exception]:
        try:
            return self._together(states, tokens)
        except Exception as error:  # noqa: BLE001 - whose fault it is, only a step alone tells
            states[0].batch.rewind()
            if len(states) == 1:
                return [error]
        return [
            scores
            for state, token in zip(states, tokens, strict=True)
            for scores in self.step([state], [token])
        ]

    def _together(self, states: Sequence[Row], tokens: Sequence[int]) -> list[Scores | Exception]:
        batch = states[0].batch
        if not batch.is_exactly(states):
            batch = Batch.of(states)
        lengths = [state.length for state in states]
        output = self._run(
            input_ids=torch.tensor([[token] for token in tokens], device=self._model.device),
            past_key_values=batch.cache,
            **self._places(lengths, batch.length),
        )
        batch.length += 1
        for state in states:
            state.length += 1
        return list(output.logits[:, -1])

    def _places(self, lengths: Sequence[int], longest: int) -> dict[str, torch.Tensor]:
        """Positions of the new tokens, and the mask over padding where there is any."""
        device = self._model.device
        own = torch.tensor([[length] for length in lengths], device=device)
        places = {"position_ids": own} if self._takes_positions else {}
        if min(lengths) < longest:
            columns = torch.arange(longest + 1, device=device)
            places["attention_mask"] = (columns >= longest - own).to(torch.long)
        return places

    def _run(self, **inputs: Any) -> Any:
        with torch.inference_mode():
            return self._model(**inputs, use_cache=True, return_dict=True)


class InTurnDecoder:
    """Any other model: each generation has a cache of its own and is computed alone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._start = decoder_start(model) if model.config.is_encoder_decoder else ()

    @property
    def start(self) -> tuple[int, ...]:
        """What an encoder-decoder's answer begins with."""
        return self._start

    def begin(self, prompt: Sequence[int]) -> tuple[dict[str, Any], Iterator[Scores | None]]:
        state: dict[str, Any] = {}
        return state, self._prefill(state, prompt)

    def _prefill(self, state: dict[str, Any], prompt: Sequence[int]) -> Iterator[Scores | None]:
        model, ids = self._model, torch.tensor([list(prompt)], device=self._model.device)
        if not model.config.is_encoder_decoder:
            state["past_key_values"] = DynamicCache(config=model.config)
            yield self._scores(state, input_ids=ids)
            return
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            encoded = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        decoder = model.config.get_text_config(decoder=True)
        state["encoder_outputs"], state["attention_mask"] = encoded, mask
        state["past_key_values"] = EncoderDecoderCache(
            DynamicCache(config=decoder), DynamicCache(config=decoder)
        )
        start = torch.tensor([list(self._start)], device=model.device)
        yield self._scores(state, decoder_input_ids=start)

    def step(
        self, states: Sequence[dict[str, Any]], tokens: Sequence[int]
    ) -> list[Scores | Exception]:
        name = "decoder_input_ids" if self._model.config.is_encoder_decoder else "input_ids"
        results: list[Scores | Exception] = []
        for state, token in zip(states, tokens, strict=True):
            ids = torch.tensor([[token]], device=self._model.device)
            try:
                results.append(self._scores(state, **{name: ids}))
            except Exception as error:  # noqa: BLE001 - fails this request alone
                results.append(error)
        return results

    def _scores(self, state: dict[str, Any], **ids: torch.Tensor) -> Scores:
        with torch.inference_mode():
            output = self._model(**ids, **state, use_cache=True, return_dict=True)
        scores: Scores = output.logits[0, -1]
        return scores


def decoder_start(model: Any) -> tuple[int, ...]:
    """The tokens an encoder-decoder's answer begins with, as `generate` has them."""
    config = model.generation_config
    start = config.decoder_start_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = config.bos_token_id
    return tuple(start) if isinstance(start, list) else (int(start or 0),)
