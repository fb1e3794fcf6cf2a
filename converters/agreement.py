"""Whether two computations of a generator's scores say the same: the rules (docs/generation.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from converters.candidates import GATES

if TYPE_CHECKING:
    from collections.abc import Iterable

# In nats, the mean over all positions. Eight-bit weights that nobody can tell from the original
# come to some 0.001, four-bit ones to 0.03 and more.
MOST_DIVERGENCE = 0.01
# The likeliest token is decided where it is twice as likely as the next; there, others may only
# be chosen by accident.
_DECIDED = 0.693  # ln 2, the difference of two scores
LEAST_AGREEMENT = 0.99
# Tokens that a model rules out have scores about the least float32; they would hide all others.
_RULED_OUT = -1e30


@dataclass(frozen=True)
class Agreement:
    """How close the scores in a lower precision come to float32's, for the same texts.

    Attributes:
        min_cosine: of all scores of one text, the worst text; each position's scores count from
            their mean, since what is added to all of them changes no probability. NaN when one is
            no number.
        divergence: Kullback-Leibler, of the next token's probabilities, mean over positions.
        same_token: share of positions with the same likeliest token, of those where float32 has
            it decided; 1 when it has none.
    """

    min_cosine: float
    divergence: float
    same_token: float

    def refusal(self, precision: str) -> str | None:
        """Why this precision may not serve; None when it may."""
        gate = GATES[precision]
        # Written so that NaN fails.
        if (
            self.min_cosine >= gate
            and self.divergence <= MOST_DIVERGENCE
            and self.same_token >= LEAST_AGREEMENT
        ):
            return None
        return (
            f"Its scores are too far from fp32's: cosine {self.min_cosine:.4f}, divergence "
            f"{self.divergence:.4f}, same likeliest token {self.same_token:.1%}; {precision} needs "
            f"{gate}, {MOST_DIVERGENCE} and {LEAST_AGREEMENT:.0%}."
        )


def agreement(expected: Iterable[torch.Tensor], found: Iterable[torch.Tensor]) -> Agreement:
    """Compare the scores `[positions, vocabulary]` of the same texts, fp32's first."""
    cosines, divergences, decided, same = [], [], 0, 0
    for one, other in zip(expected, found, strict=True):
        kept = (one > _RULED_OUT).all(0)
        a, b = one[:, kept].double(), other[:, kept].double()
        cosines.append(_cosine(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)))
        divergences.append(_divergence(a, b))
        best = a.topk(min(2, a.shape[-1]), dim=-1)
        sure = (best.values[:, 0] - best.values[:, -1]) >= _DECIDED
        decided += int(sure.sum())
        same += int((best.indices[:, 0] == b.argmax(-1))[sure].sum())
    # torch's minimum keeps a NaN, Python's keeps or loses it by its place.
    return Agreement(
        min_cosine=float(torch.stack(cosines).min()),
        divergence=float(torch.cat(divergences).mean()),
        same_token=same / decided if decided else 1.0,
    )


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cosine: torch.Tensor = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30)
    return cosine


def _divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """For each position."""
    sure, other = a.log_softmax(-1), b.log_softmax(-1)
    return (sure.exp() * (sure - other)).sum(-1)
