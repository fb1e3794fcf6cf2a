"""Triton's side of the image_embedding backend.

Protocol: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from backends import triton
from backends.image_embedding.embedder import Embedder
from backends.image_embedding.requests import EmbeddingRequest, read_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


class TritonPythonModel:
    """One image model in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._embedder = triton.opened(args, Embedder.open)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of one execution; a bad one fails alone."""
        return triton.answer_together(requests, self._read, self._embedder.embed)

    def _read(self, request: Any) -> EmbeddingRequest:
        return read_request(
            _tensor(request, "image_input"),
            _tensor(request, "text_input"),
            triton.parameters(request),
            self._embedder.artefact,
        )


def _tensor(request: Any, name: str) -> NDArray[Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
