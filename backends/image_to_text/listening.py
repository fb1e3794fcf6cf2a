"""Follows a running `generate`: collects its text, ends it at stop strings or when nobody waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

from backends.generation.detokenizing import Detokenizer
from backends.generation.stopping import StopStrings

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.generation.parameters import Generation


class Listener(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Called by transformers after each token of the one sequence that is generated.

    Attributes:
        abandoned: it ended because nobody waits.
        count: tokens so far.
    """

    def __init__(
        self,
        tokenizer: Any,
        asked: Generation,
        abandoned: Callable[[], bool],
        end_tokens: frozenset[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(asked.stop)
        self._asked, self._is_abandoned, self._end_tokens = asked, abandoned, end_tokens
        self._parts: list[str] = []
        self._ids: list[int] = []
        self._ended = False
        self.abandoned = False
        self.count = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002 - theirs
        token = int(input_ids[0, -1])
        self.count += 1
        self._ended = token in self._end_tokens
        if not self._ended:
            self._ids.append(token)
            self._parts.append(self._stops.feed(self._detokenizer.add(token)))
        self.abandoned = self._is_abandoned()
        done = self._stops.reached or self.abandoned
        return torch.full((input_ids.shape[0],), done, device=input_ids.device)

    def result(self) -> tuple[str, str]:
        """The text, and why it ended: stop or length."""
        if not self._stops.reached:
            self._parts.append(self._stops.feed(self._detokenizer.rest()))
        if self._stops.reached:
            return "".join(self._parts), "stop"
        # All at once, as the tokenizer likes it best: some close the gaps before punctuation.
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        full = self.count >= self._asked.max_tokens
        return whole, "length" if full and not self._ended else "stop"
