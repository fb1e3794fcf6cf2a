"""Triton's side of the backend: requests in, responses out, nothing else.

A version folder's `model.py` imports `TritonPythonModel` from here. Protocol:
https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from backends import triton
from backends.errors import BackendError, InputError
from backends.text_embedding.embedder import Embedder
from backends.text_embedding.requests import EmbeddingRequest, read_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class TritonPythonModel:
    """One text-embedding model in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._embedder = triton.opened(args, Embedder.open)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of one execution; a bad one fails alone."""
        responses: dict[int, Any] = {}
        accepted: dict[int, EmbeddingRequest] = {}
        for index, request in enumerate(requests):
            try:
                accepted[index] = self._read(request)
            except InputError as error:
                responses[index] = triton.failed(error)
        places = list(accepted)
        results = self._embedder.embed(
            list(accepted.values()), lambda number: requests[places[number]].is_cancelled()
        )
        for index, result in zip(places, results, strict=True):
            responses[index] = _respond(result)
        return [responses[index] for index in range(len(requests))]

    def _read(self, request: Any) -> EmbeddingRequest:
        tensor = pb_utils.get_input_tensor_by_name(request, "text_input")
        parameters = triton.parameters(request)
        return read_request(tensor.as_numpy(), parameters, self._embedder.artefact)


def _respond(result: Any) -> Any:
    if isinstance(result, BackendError):
        return triton.failed(result)
    return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", result)])
