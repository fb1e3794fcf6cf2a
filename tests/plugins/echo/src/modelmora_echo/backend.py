"""What answers requests: runs in a Triton stub process of its own, one for each loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from backends import triton
from backends.engines import open_engine
from backends.errors import BackendError, InputError
from backends.manifest import read_manifest, reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_CHARACTERS = 100_000


class TritonPythonModel:
    """One echo model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artefact; what is raised here is the load's error, in the user's words."""
        triton.log_to_triton()
        folder = triton.version_folder(args)
        try:
            manifest = read_manifest(folder)
            with reading(folder):
                section = manifest["echo"]
                self._times, self._separator = int(section["times"]), str(section["separator"])
                graph, engine = section["graph_file"], manifest["engine"]
            self._engine = open_engine(
                engine, folder / graph, input_names=["codes"], output_names=["codes"]
            )
        except BackendError as error:
            raise triton.load_failure(error) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request of a batch; a bad one fails alone, and never the process."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            texts = _texts(request)
            upper = _flag(triton.parameters(request), "upper")
            said = [self._said(text, upper=upper) for text in texts]
        except BackendError as error:
            return triton.failed(error)
        encoded = np.array([text.encode() for text in said], np.object_).reshape(-1, 1)
        lengths = np.array([len(text) for text in said], np.int32).reshape(-1, 1)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("text_output", encoded), pb_utils.Tensor("characters", lengths)]
        )

    def _said(self, text: str, *, upper: bool) -> str:
        codes = np.array([[ord(char) for char in text]], np.int32)
        turned = self._engine.run({"codes": codes})["codes"][0]
        once = "".join(map(chr, turned))
        return self._separator.join([once.upper() if upper else once] * self._times)


def _texts(request: Any) -> list[str]:
    raw = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)
    try:
        texts = [item.decode("utf-8") for item in raw]
    except (UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"text_input must be UTF-8 text: {error}.") from error
    if any(len(text) > MAX_CHARACTERS for text in texts):
        raise InputError(f"A text of text_input has more than {MAX_CHARACTERS:,} characters.")
    return texts


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"Parameter {name} must be true or false, got {value!r}.")
    return value
