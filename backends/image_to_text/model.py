"""Triton's side of the backend: requests in, responses out, one after the other.

Protocol: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from backends import machine, triton
from backends.errors import BackendError, EngineError
from backends.image_to_text.describer import Describer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.image_to_text.describer import Description

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One image-to-text model in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._describer = triton.opened(args, Describer.open)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of one execution; a bad one fails alone."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """The model is unloaded."""
        del self._describer
        machine.return_free_memory()

    def _answer(self, request: Any) -> Any:
        try:
            description = self._describer.describe(
                triton.one_element(request, "image_input"),
                triton.one_element(request, "text_input"),
                triton.one_element(request, "messages"),
                triton.parameters(request),
                request.is_cancelled,
            )
        except BackendError as error:
            return triton.failed(error)
        except Exception as error:  # noqa: BLE001 - fails this request alone
            _log.exception("a request failed")
            return triton.failed(EngineError(f"The request failed: {error}."))
        return _response(description)


def _response(found: Description) -> Any:
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("text_output", _bytes(found.text)),
            pb_utils.Tensor("finish_reason", _bytes(found.finish_reason)),
            pb_utils.Tensor("prompt_tokens", np.array([found.prompt_tokens], np.int32)),
            pb_utils.Tensor("completion_tokens", np.array([found.completion_tokens], np.int32)),
        ]
    )


def _bytes(text: str) -> np.ndarray[Any, Any]:
    return np.array([text.encode("utf-8", errors="replace")], dtype=np.object_)
