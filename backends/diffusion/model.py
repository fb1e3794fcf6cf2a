"""Triton's side of the diffusion backend: decoupled, a response per step.

Protocol: https://github.com/triton-inference-server/python_backend#decoupled-mode
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends import triton
from backends.diffusion.painter import Painter
from backends.diffusion.requests import PictureRequest, read_request
from backends.errors import BackendError, EngineError, InputError, RequestAbandoned
from backends.one_by_one import OneByOne

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class TritonPythonModel:
    """One pipeline in a stub process; pictures are made one after the other."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact in the version folder that `args` names.

        Raises:
            pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
        """
        self._painter = triton.opened(args, Painter.open)
        self._queue: OneByOne[tuple[PictureRequest, Any]] = OneByOne(self._paint)

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue the requests and return, so that others can queue behind them."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                inputs = triton.arrays(request, ("text_input", "image_input"))
                read = read_request(
                    inputs,
                    triton.parameters(request),
                    self._painter.artefact,
                    self._painter.defaults,
                )
            except InputError as error:
                triton.send_last(sender, triton.failed_on_stream(error))
                continue
            self._queue.put((read, sender))

    def finalize(self) -> None:
        """End the work; what still waits is told so."""
        for _, sender in self._queue.stop():
            gone = RequestAbandoned("The model was unloaded.")
            triton.send_last(sender, triton.failed_on_stream(gone))

    def _paint(self, job: tuple[PictureRequest, Any]) -> None:
        request, sender = job
        done, steps = 0, request.steps

        def on_step(step: int, of: int) -> None:
            nonlocal done, steps
            done, steps = step, of
            sender.send(triton.answered(_progress(step, of)))

        def abandoned() -> bool:
            return self._queue.stopping or bool(sender.is_cancelled())

        try:
            png = self._painter.paint(request, on_step, abandoned)
            picture = {"image_output": np.array([png], dtype=np.object_)}
            response = triton.answered(picture | _progress(done, steps))
        except BackendError as error:
            response = triton.failed_on_stream(error)
        except Exception as error:  # noqa: BLE001 - the thread must live, and the client know
            response = triton.failed_on_stream(EngineError(f"The backend broke: {error}."))
        triton.send_last(sender, response)


def _progress(step: int, steps: int) -> dict[str, Any]:
    return {"step": np.array([step], np.int32), "steps": np.array([steps], np.int32)}
