"""One running generation: from a request to the pieces of text that answer it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from backends.generation.stopping import StopStrings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from backends.errors import BackendError
    from backends.generation.detokenizing import Detokenizer
    from backends.generation.sampling import Sampler
    from backends.text_generation.decoding import State
    from backends.text_generation.requests import GenerationRequest

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last has a `finish_reason` and the counts of tokens."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Receiver(Protocol):
    """Who waits for an answer."""

    def send(self, piece: Piece) -> None:
        """Take a piece; one with a finish reason is the last."""

    def fail(self, error: BackendError) -> None:
        """Take an error in the place of the rest of the answer."""

    def is_gone(self) -> bool:
        """Whether nobody waits any more."""


class Sequence:
    """A generation on its way; driven by the scheduler, which owns it."""

    def __init__(
        self,
        request: GenerationRequest,
        receiver: Receiver,
        *,
        sampler: Sampler,
        detokenizer: Detokenizer,
        end_tokens: frozenset[int],
        state: State,
        prefill: Iterator[torch.Tensor | None],
    ) -> None:
        self.request, self.receiver = request, receiver
        self.state, self.prefill = state, prefill
        self.token = 0  # chosen last, not computed yet
        self._sampler, self._detokenizer = sampler, detokenizer
        self._stops = StopStrings(request.generation.stop)
        self._end_tokens = end_tokens
        self._count = 0
        self._unsent: list[str] = []

    def take(self, scores: torch.Tensor) -> bool:
        """Choose the next token and send what text is ready; True when the answer is complete."""
        self.token = self._sampler.choose(scores)
        self._count += 1
        if self.token in self._end_tokens:
            self._finish(STOP)
            return True
        text = self._stops.feed(self._detokenizer.add(self.token))
        if self._stops.reached:
            self._end(text, STOP)
        elif self._count >= self.request.generation.max_tokens:
            self._finish(LENGTH, text)
        else:
            self._send(text)
            return False
        return True

    def cancel(self) -> None:
        """Nobody waits: end here."""
        self._end("", CANCELLED)

    def _finish(self, reason: str, text: str = "") -> None:
        """The end that no stop string made, unless one is in what was held back."""
        text += self._stops.feed(self._detokenizer.rest())
        if self._stops.reached:
            self._end(text, STOP)
        else:
            self._end(text + self._stops.rest(), reason)

    def _send(self, text: str) -> None:
        if not self.request.stream:
            self._unsent.append(text)
        elif text:
            self.receiver.send(Piece(text))

    def _end(self, text: str, reason: str) -> None:
        whole = "".join([*self._unsent, text])
        self.receiver.send(Piece(whole, reason, len(self.request.prompt), self._count))
