"""Triton's side of the backend: decoupled, responses are sent by the generation's own thread.

Protocol: https://github.com/triton-inference-server/python_backend, "Decoupled mode"
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from backends import triton
from backends.errors import BackendError, InputError
from backends.text_generation.generator import Generator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.text_generation.sequence import Piece

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """One text-generation model in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._generator = triton.opened(args, Generator.open)

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer all requests; a bad one fails alone."""
        for request in requests:
            answer = _Answer(request.get_response_sender())
            try:
                self._begin(request, answer)
            except BackendError as error:
                answer.fail(error)
            except Exception as error:  # noqa: BLE001 - nobody else would tell the client
                _log.exception("a request could not be read")
                answer.fail(InputError(f"The request cannot be read: {error}."))

    def finalize(self) -> None:
        """The model is unloaded."""
        self._generator.close()

    def _begin(self, request: Any, answer: _Answer) -> None:
        self._generator.answer(
            triton.one_element(request, "text_input"),
            triton.one_element(request, "messages"),
            triton.parameters(request),
            answer,
        )


class _Answer:
    """A request's responses; the sender outlives `execute`."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, piece: Piece) -> None:
        tensors = [pb_utils.Tensor("text_output", _bytes(piece.text))]
        if piece.finish_reason is None:
            self._sender.send(pb_utils.InferenceResponse(tensors))
            return
        tensors += [
            pb_utils.Tensor("finish_reason", _bytes(piece.finish_reason)),
            pb_utils.Tensor("prompt_tokens", np.array([piece.prompt_tokens], np.int32)),
            pb_utils.Tensor("completion_tokens", np.array([piece.completion_tokens], np.int32)),
        ]
        self._last(pb_utils.InferenceResponse(tensors))

    def fail(self, error: BackendError) -> None:
        self._last(triton.failed_on_stream(error))

    def is_gone(self) -> bool:
        return bool(self._sender.is_cancelled())

    def _last(self, response: Any) -> None:
        triton.send_last(self._sender, response)


def _bytes(text: str) -> np.ndarray[Any, Any]:
    return np.array([text.encode("utf-8", errors="replace")], dtype=np.object_)
