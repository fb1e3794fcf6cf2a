"""A transformers pipeline and the task around it: arrays in, arrays out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers

from backends.errors import ArtefactError, BackendError, EngineError
from backends.machine import return_free_memory, usable_cores
from backends.pipeline.artefact import PipelineArtefact, read_artefact
from backends.pipeline.audio2txt import Audio2Text
from backends.pipeline.object_detection import ObjectDetection
from backends.pipeline.txt2audio import Text2Audio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Task(Protocol):
    """What a task makes of its pipeline; one module each."""

    pipeline: str
    """transformers' name of it."""

    def __init__(self, pipe: Any) -> None: ...

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, of the inputs that a request has.

        Raises:
            InputError: the request asks for what the model cannot do.
        """


TASKS: dict[str, type[Task]] = {
    "object_detection": ObjectDetection,
    "audio2txt": Audio2Text,
    "txt2audio": Text2Audio,
}


class Runner:
    """A loaded model; `run` may be called from one thread at a time."""

    def __init__(self, artefact: PipelineArtefact, task: Task) -> None:
        self.artefact = artefact
        self._task = task

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Runner:
        """Load the model in a version folder, onto a CUDA device where there is one.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        if artefact.task_type not in TASKS:
            raise ArtefactError(f"The pipeline backend has no task {artefact.task_type}.")
        kind = TASKS[artefact.task_type]
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing but the artefact's own files
        torch.set_num_threads(usable_cores())
        transformers.utils.logging.disable_progress_bar()
        try:
            pipe = transformers.pipeline(
                kind.pipeline,
                model=str(artefact.folder),
                dtype=_DTYPES[artefact.precision],
                device=f"cuda:{device_id}" if torch.cuda.is_available() else "cpu",
                trust_remote_code=False,
                model_kwargs={"use_safetensors": artefact.safe},
            )
            return cls(artefact, kind(pipe))
        except Exception as error:
            raise EngineError(f"transformers cannot load the model: {_line(error)}") from error

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Args:
            inputs: the request's tensors that it has, arrays of `[1]`.

        Raises:
            InputError: see `Task.run`.
            EngineError: the model failed.
        """
        try:
            with torch.inference_mode():
                return self._task.run(inputs, parameters)
        except BackendError:
            raise
        except Exception as error:
            raise EngineError(f"transformers failed: {_line(error)}") from error
        finally:
            return_free_memory()


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:500]
