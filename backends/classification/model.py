"""Triton's side of the classification backend.

Protocol: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends import triton
from backends.classification.classifier import ClassificationRequest, Classifier
from backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class TritonPythonModel:
    """One classifier in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._classifier = triton.opened(args, Classifier.open)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of one execution; a bad one fails alone."""
        return triton.answer_together(requests, self._read, self._classify)

    def _read(self, request: Any) -> ClassificationRequest:
        inputs = triton.arrays(request, ("text_input", "text_pair_input", "image_input"))
        return self._classifier.read(inputs, triton.parameters(request))

    def _classify(
        self, accepted: list[ClassificationRequest], abandoned: Any
    ) -> list[dict[str, Any] | BackendError]:
        return [
            found
            if isinstance(found, BackendError)
            else {"label": found.labels, "score": found.scores}
            for found in self._classifier.classify(accepted, abandoned)
        ]
