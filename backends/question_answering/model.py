"""Triton's side of the question_answering backend.

Protocol: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from backends import triton
from backends.errors import BackendError, InputError
from backends.question_answering.reader import QuestionsRequest, Reader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.question_answering.spans import Answer


class TritonPythonModel:
    """One extractive reader in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._reader = triton.opened(args, Reader.open)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of one execution; a bad one fails alone."""
        return triton.answer_together(requests, self._read, self._answer)

    def _read(self, request: Any) -> QuestionsRequest:
        given = {}
        for name in ("text_input", "context_input"):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise InputError(f"The input {name} is missing.")
            given[name] = tensor.as_numpy()
        return self._reader.read(parameters=triton.parameters(request), **given)

    def _answer(
        self, accepted: list[QuestionsRequest], abandoned: Any
    ) -> list[dict[str, Any] | BackendError]:
        return [
            found if isinstance(found, BackendError) else _outputs(found)
            for found in self._reader.answer(accepted, abandoned)
        ]


def _outputs(answers: Sequence[Answer]) -> dict[str, Any]:
    """The response's arrays, each [questions, 1]."""
    texts = np.empty((len(answers), 1), dtype=np.object_)
    texts[:, 0] = [answer.text.encode() for answer in answers]
    return {
        "text_output": texts,
        "score": np.array([[answer.score] for answer in answers], dtype=np.float32),
        "start": np.array([[answer.start] for answer in answers], dtype=np.int32),
        "end": np.array([[answer.end] for answer in answers], dtype=np.int32),
    }
