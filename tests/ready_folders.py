"""Ready-made Triton model folders of many kinds, as their authors would bring them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Triton's word, the v2 protocol's, numpy's.
TYPES = (
    ("TYPE_INT8", "INT8", "int8"),
    ("TYPE_INT16", "INT16", "int16"),
    ("TYPE_INT32", "INT32", "int32"),
    ("TYPE_INT64", "INT64", "int64"),
    ("TYPE_UINT8", "UINT8", "uint8"),
    ("TYPE_UINT16", "UINT16", "uint16"),
    ("TYPE_UINT32", "UINT32", "uint32"),
    ("TYPE_UINT64", "UINT64", "uint64"),
    ("TYPE_FP16", "FP16", "float16"),
    ("TYPE_FP32", "FP32", "float32"),
    ("TYPE_FP64", "FP64", "float64"),
    ("TYPE_BOOL", "BOOL", "bool"),
    ("TYPE_STRING", "BYTES", "object"),
)

ECHO_CONFIG = """
name: "whatever-its-author-called-it"
backend: "python"
max_batch_size: 8
input [ { name: "text" data_type: TYPE_STRING dims: [1] } ]
output [ { name: "echo" data_type: TYPE_STRING dims: [1] } ]
"""
ECHO = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(
                "echo", pb_utils.get_input_tensor_by_name(request, "text").as_numpy())])
            for request in requests
        ]
"""

REPEAT_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "count" data_type: TYPE_INT32 dims: [1] } ]
output [ { name: "number" data_type: TYPE_INT32 dims: [1] } ]
instance_group [ { kind: KIND_CPU } ]
"""
REPEAT = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy()[0])
            sender = request.get_response_sender()
            for number in range(count):
                tensor = pb_utils.Tensor("number", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

SUM_CONFIG = """
backend: "python"
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
  oldest { max_candidate_sequences: 8 }
}
input [ { name: "number" data_type: TYPE_INT32 dims: [1] } ]
output [ { name: "sum" data_type: TYPE_INT32 dims: [1] } ]
"""
SUM = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        def given(name):
            return int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()[0])

        sequence = given("CORRID")
        if given("START"):
            self.sums[sequence] = 0
        self.sums[sequence] += given("number")
        total = np.array([[self.sums[sequence]]], np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("sum", total)])
"""

TYPED = """
import triton_python_backend_utils as pb_utils

NAMES = {names!r}


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = [
            pb_utils.Tensor("out_" + name, pb_utils.get_input_tensor_by_name(
                request, "in_" + name).as_numpy())
            for name in NAMES
        ]
        return pb_utils.InferenceResponse(tensors)
"""


def write(home: Path, config: str, source: str | None = None, version: int = 1) -> Path:
    """One version of a Python model; returns the model's folder."""
    folder = home / str(version)
    folder.mkdir(parents=True)
    (home / "config.pbtxt").write_text(textwrap.dedent(config), encoding="utf-8")
    if source is not None:
        (folder / "model.py").write_text(textwrap.dedent(source), encoding="utf-8")
    return home


def echo(home: Path) -> Path:
    """`text` BYTES [batch, 1] comes back as `echo`."""
    return write(home, ECHO_CONFIG, ECHO)


def repeat(home: Path) -> Path:
    """Decoupled: `count` INT32 [1] brings so many responses `number`."""
    return write(home, REPEAT_CONFIG, REPEAT)


def slowly_repeating(home: Path) -> Path:
    """The same, ten responses a second."""
    sent = "sender.send(pb_utils.InferenceResponse([tensor]))\n"
    source = REPEAT.replace(sent, f"{sent}{' ' * 16}time.sleep(0.1)\n")
    return write(home, REPEAT_CONFIG, "import time\n" + source)


def running_sum(home: Path) -> Path:
    """A model with sequences: the sum of the `number`s of a sequence so far."""
    return write(home, SUM_CONFIG, SUM)


def typed(home: Path) -> Path:
    """`in_int8` … `in_object` [-1] of every type of TYPES come back as `out_…`; no batches."""
    names = [numpy for _, _, numpy in TYPES]
    config = 'backend: "python"\n' + "".join(
        f'{kind} [ {{ name: "{short}_{numpy}" data_type: {triton} dims: [-1] }} ]\n'
        for triton, _, numpy in TYPES
        for kind, short in (("input", "in"), ("output", "out"))
    )
    return write(home, config, TYPED.format(names=names))


def slow(home: Path, seconds: float) -> Path:
    """An echo that takes its time."""
    source = ECHO.replace("import triton", "import time\nimport triton").replace(
        "        return [", f"        time.sleep({seconds})\n        return [", 1
    )
    return write(home, ECHO_CONFIG, source)


def choosy(home: Path) -> Path:
    """An echo that refuses empty texts: a made-up input is not good enough for it."""
    source = ECHO.replace(
        "        return [",
        "        for request in requests:\n"
        '            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()\n'
        '            assert text.ravel()[0] != b"", "an empty text means nothing to me"\n'
        "        return [",
        1,
    )
    return write(home, ECHO_CONFIG, source)


def broken(home: Path) -> Path:
    """Its `initialize` raises."""
    source = ECHO + (
        "\n    def initialize(self, args):\n"
        '        raise RuntimeError("no weights where I looked")\n'
    )
    return write(home, ECHO_CONFIG, source)


def labelled(home: Path, text: str = "cat\ndog\n") -> Path:
    """Answers what the file `labels/names.txt` of its model's folder holds."""
    config = ECHO_CONFIG.replace('"echo" data', '"echo" label_filename: "labels/names.txt" data')
    source = """
    import os

    import numpy as np
    import triton_python_backend_utils as pb_utils
    from helper import shout


    class TritonPythonModel:
        def initialize(self, args):
            place = os.path.join(args["model_repository"], "labels", "names.txt")
            with open(place, "rb") as file:
                self.labels = shout(file.read())

        def execute(self, requests):
            answer = np.array([[self.labels]], np.object_)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("echo", answer)]) for _ in requests]
    """
    write(home, config, source)
    (home / "1" / "helper.py").write_text("def shout(text):\n    return text.upper()\n")
    (home / "labels").mkdir()
    (home / "labels" / "names.txt").write_text(text)
    return home
