"""Triton's side of the pipeline backend.

Protocol: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends import triton
from backends.errors import BackendError, RequestAbandoned
from backends.pipeline.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INPUTS = ("text_input", "image_input", "audio_input")


class TritonPythonModel:
    """One transformers pipeline in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._runner = triton.opened(args, Runner.open)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests one after the other; a bad one fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            if request.is_cancelled():
                return triton.failed(RequestAbandoned("The request was cancelled."))
            inputs = triton.arrays(request, _INPUTS)
            return triton.answered(self._runner.run(inputs, triton.parameters(request)))
        except BackendError as error:
            return triton.failed(error)
