"""Triton's side of the backend: requests in, responses out, nothing else.

A version folder's `model.py` imports `TritonPythonModel` from here. Protocol:
https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from backends.errors import BackendError, InputError, RequestAbandoned
from backends.text_embedding.embedder import Embedder
from backends.text_embedding.requests import EmbeddingRequest, read_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _TritonLog(logging.Handler):
    """Sends our log lines to Triton's log, which the control plane reads."""

    def emit(self, record: logging.LogRecord) -> None:
        write = {
            logging.ERROR: pb_utils.Logger.log_error,
            logging.WARNING: pb_utils.Logger.log_warn,
        }.get(record.levelno, pb_utils.Logger.log_info)
        write(self.format(record))


class TritonPythonModel:
    """One text-embedding model in a stub process."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_TritonLog()])
        folder = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args.get("model_instance_kind") == "GPU"
        device_id = int(args["model_instance_device_id"]) if on_gpu else 0
        try:
            self._embedder = Embedder.open(folder, device_id=device_id)
        except BackendError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests of one execution; a bad one fails alone."""
        responses: dict[int, Any] = {}
        accepted: dict[int, EmbeddingRequest] = {}
        for index, request in enumerate(requests):
            try:
                accepted[index] = self._read(request)
            except InputError as error:
                responses[index] = _failed(error, pb_utils.TritonError.INVALID_ARG)
        places = list(accepted)
        results = self._embedder.embed(
            list(accepted.values()), lambda number: requests[places[number]].is_cancelled()
        )
        for index, result in zip(places, results, strict=True):
            responses[index] = _respond(result)
        return [responses[index] for index in range(len(requests))]

    def _read(self, request: Any) -> EmbeddingRequest:
        tensor = pb_utils.get_input_tensor_by_name(request, "text_input")
        parameters = json.loads(request.parameters() or "{}")
        return read_request(tensor.as_numpy(), parameters, self._embedder.artefact)


def _respond(result: Any) -> Any:
    if isinstance(result, RequestAbandoned):
        return _failed(result, pb_utils.TritonError.CANCELLED)
    if isinstance(result, BackendError):
        return _failed(result, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", result)])


def _failed(error: BackendError, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
