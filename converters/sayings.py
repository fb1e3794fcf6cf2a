"""What a model says to inputs of any kind, step by step, so that two precisions can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TOKENS = 8  # of each answer


class Sayings:
    """Scores of generated answers. The first model chooses its own tokens; those that are asked
    later are led along the same ones, since after another token nothing could be compared."""

    def __init__(self, inputs: Callable[[Any], Iterable[Any]]) -> None:
        """
        Args:
            inputs: what a model is asked, as `generate` takes it.
        """
        self._inputs = inputs
        self._said: list[torch.Tensor] | None = None

    def __call__(self, model: Any) -> list[torch.Tensor]:
        """Scores [tokens, vocabulary] of each answer, before anything was done to them."""
        asked = list(self._inputs(model))
        said: list[torch.Tensor | None] = [None] * len(asked)
        if self._said is not None:
            said = list(self._said)
        outputs = [_answer(model, one, path) for one, path in zip(asked, said, strict=True)]
        scores = [torch.cat(output.logits) for output in outputs]
        if self._said is None:
            self._said = [output.sequences[0, -len(output.logits) :] for output in outputs]
        return scores


def _answer(model: Any, inputs: Any, path: torch.Tensor | None) -> Any:
    led = [] if path is None else [_Led(path)]
    return model.generate(
        **inputs,
        max_new_tokens=TOKENS if path is None else len(path),
        do_sample=False,
        num_beams=1,
        logits_processor=LogitsProcessorList(led),
        return_dict_in_generate=True,
        output_logits=True,
    )


class _Led(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Has the tokens of a path chosen, whatever the scores."""

    def __init__(self, path: torch.Tensor) -> None:
        self._path, self._step = path, 0

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        led = torch.full_like(scores, -torch.inf)
        led[:, self._path[self._step]] = 0.0
        self._step += 1
        return led
