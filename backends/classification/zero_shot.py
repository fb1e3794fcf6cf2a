"""Labels that the request brings: a model of natural language inference says which ones follow.

Each label makes a hypothesis about the text; what the model holds of "entailment" is its score.
The rules are those of transformers (`pipelines/zero_shot_classification.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.errors import InputError
from backends.request_parameters import flag, short_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_CANDIDATES = 100
_LONGEST_LABEL = 1_000
_LONGEST_PARAMETER = MAX_CANDIDATES * (_LONGEST_LABEL + 10)
DEFAULT_TEMPLATE = "This example is {}."
_OPTIONS = ("hypothesis_template", "multi_label")


@dataclass(frozen=True)
class Candidates:
    """The labels that a request brings.

    Attributes:
        labels: in the request's order.
        multi_label: each is judged by itself; else their scores add up to 1.
        template: a sentence with `{}` in the place of a label.
    """

    labels: tuple[str, ...]
    multi_label: bool
    template: str

    def pairs(self, text: str) -> list[tuple[str, str]]:
        """The text with the hypothesis of each label."""
        return [(text, self.template.replace("{}", label)) for label in self.labels]

    def scores(self, logits: NDArray[np.float64], entailment: int) -> NDArray[np.float64]:
        """Scores [items, candidates] of logits [items x candidates, labels].

        Args:
            entailment: the place of that label.
        """
        grouped = logits.reshape(-1, len(self.labels), logits.shape[-1])
        if self.multi_label or len(self.labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            return softmax(grouped[..., [contradiction, entailment]])[..., 1]
        return softmax(grouped[..., entailment])


def read_candidates(parameters: Mapping[str, Any]) -> Candidates | None:
    """The candidates that the parameters name; None where they name none.

    Args:
        parameters: `candidate_labels` (a JSON list of texts, or texts with commas between them),
            `hypothesis_template`, `multi_label`.

    Raises:
        InputError: naming the parameter that breaks a rule.
    """
    given = short_text(parameters, "candidate_labels", None, longest=_LONGEST_PARAMETER)
    if given is None:
        for name in _OPTIONS:
            if parameters.get(name) is not None:
                raise InputError(f"Parameter {name} goes with candidate_labels, which is missing.")
        return None
    template = short_text(
        parameters, "hypothesis_template", DEFAULT_TEMPLATE, longest=_LONGEST_LABEL
    )
    assert template is not None
    if "{}" not in template:
        raise InputError("Parameter hypothesis_template must have {} where the label goes.")
    return Candidates(_labels(given), flag(parameters, "multi_label", False), template)


def _labels(given: str) -> tuple[str, ...]:
    try:
        listed = json.loads(given) if given.lstrip().startswith("[") else given.split(",")
    except (ValueError, RecursionError):
        raise InputError("Parameter candidate_labels is no JSON list of texts.") from None
    if not isinstance(listed, list) or not all(isinstance(label, str) for label in listed):
        raise InputError("Parameter candidate_labels must be a list of texts.")
    labels = tuple(label.strip() for label in listed)
    if not 0 < len(labels) <= MAX_CANDIDATES or len(set(labels)) < len(labels):
        raise InputError(
            f"Parameter candidate_labels must have from 1 to {MAX_CANDIDATES} labels, each once."
        )
    if not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise InputError(
            f"Parameter candidate_labels must have labels of 1 to {_LONGEST_LABEL:,} characters."
        )
    return labels


def softmax(values: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares


def entailment_place(labels: Sequence[str]) -> int | None:
    """The place of the label that says that a hypothesis follows; None where there is none."""
    places = [place for place, name in enumerate(labels) if name.lower().startswith("entail")]
    return places[0] if places else None
