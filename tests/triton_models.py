"""Tiny models for Triton's Python backend, written into a model repository."""

from __future__ import annotations

import itertools
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [1] }},
  {{ name: "number" data_type: TYPE_FP32 dims: [-1] optional: true }}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [1] }},
  {{ name: "number_output" data_type: TYPE_FP32 dims: [-1] }}
]
dynamic_batching {{ }}
instance_group [{{ count: 1 kind: KIND_CPU }}]
version_policy {{ specific {{ versions: [{version}] }} }}
"""

_MODEL = """
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.model_name = args["model_name"]
        {initialize}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        number = pb_utils.get_input_tensor_by_name(request, "number")
        number = np.zeros((len(text), 1), np.float32) if number is None else number.as_numpy()
        {execute}
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("text_output", text),
            pb_utils.Tensor("number_output", number),
        ])
"""


def config_text(name: str, version: int = 1) -> str:
    """The config.pbtxt of the models that are written here."""
    return _CONFIG.format(name=name, version=version)


class TritonModels:
    """Writes models below `root`. All take `text_input` BYTES [batch, 1] and, optionally,
    `number` FP32 [batch, any], and answer `text_output` and `number_output`: the same, unless
    the code given changes `text` or `number`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count(1)

    def write(
        self,
        name: str | None = None,
        *,
        version: int = 1,
        initialize: str = "pass",
        execute: str = "pass",
    ) -> str:
        """Write one version of a model and return its name (default: one never used before).

        Args:
            initialize: statements that run when the model is loaded.
            execute: statements that run for each request.
        """
        name = name or f"test--model-{next(self._numbers)}"
        folder = self.root / name / str(version)
        folder.mkdir(parents=True)
        source = _MODEL.format(initialize=_block(initialize), execute=_block(execute))
        (folder / "model.py").write_text(source, encoding="utf-8")
        config = config_text(name, version)
        (folder.parent / "config.pbtxt").write_text(config, encoding="utf-8")
        return name

    def echo(self, name: str | None = None, *, version: int = 1) -> str:
        """A model that answers with what it was sent."""
        return self.write(name, version=version)

    def failing(self, text: str = "no weights here") -> str:
        """A model whose load fails with that text."""
        return self.write(initialize=f"raise RuntimeError({text!r})")

    def hanging(self, seconds: float = 120.0) -> str:
        """A model whose load takes that long."""
        return self.write(initialize=f"time.sleep({seconds})")

    def slow(self, seconds: float = 0.5) -> str:
        """An echo model that takes so long for each request."""
        return self.write(execute=f"time.sleep({seconds})")


def _block(statements: str) -> str:
    return textwrap.indent(textwrap.dedent(statements).strip(), " " * 8).lstrip()


_TRIVIAL_CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "number" data_type: TYPE_INT64 dims: [1] } ]
output [
  { name: "number" data_type: TYPE_INT64 dims: [1] },
  { name: "model_name" data_type: TYPE_STRING dims: [1] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { }
"""

_TRIVIAL_MODEL = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"].encode()
        # ones, not zeros: pages that nobody wrote to take no memory
        self.weights = np.ones({memory_mb} * 2**20, np.uint8)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        time.sleep({delay})
        number = pb_utils.get_input_tensor_by_name(request, "number").as_numpy()
        names = np.full(number.shape, self.name, dtype=np.object_)
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("number", number),
            pb_utils.Tensor("model_name", names),
        ])
"""


def trivial_model(folder: Path, name: str, *, memory_mb: int = 0, delay: float = 0.0) -> Path:
    """Write a ready Triton model folder `folder/name` (for `install --source`) and return it.

    The model takes `number` INT64 [batch, 1] and answers `number`, the same, and `model_name`
    BYTES [batch, 1], the name that Triton knows the model by.

    Args:
        memory_mb: what it takes in memory beside Python and numpy.
        delay: seconds that each request takes.
    """
    home = folder / name
    (home / "1").mkdir(parents=True)
    (home / "config.pbtxt").write_text(_TRIVIAL_CONFIG, encoding="utf-8")
    source = _TRIVIAL_MODEL.format(memory_mb=memory_mb, delay=delay)
    (home / "1" / "model.py").write_text(source, encoding="utf-8")
    return home
