"""Graphs that one of Triton's own backends runs, as a model beside ours that is asked by BLS.

The control plane loads that member before this process and unloads it after it, and says so by a
parameter of our model's configuration (`controlplane/triton/native_config.py`). A stub serves one
version of one model, so there is at most one member to a process. BLS works in `execute` only.

Protocol: https://github.com/triton-inference-server/python_backend, "Business Logic Scripting"
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from backends.engines import BatchCost
from backends.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

PARAMETER = "modelmora_native"


def member_of(args: Mapping[str, str]) -> str | None:
    """The member's name, of what Triton gives `initialize`; None where our process runs the graph.

    As `member_name` of the control plane has it.
    """
    config = json.loads(args.get("model_config") or "{}")
    if not config.get("parameters", {}).get(PARAMETER, {}).get("string_value"):
        return None
    return f"{args['model_name']}--{args['model_version']}"


class NativeEngine:
    """A graph in Triton: named tensors go there and come back."""

    device = "triton"
    # As ONNX Runtime on a CPU: what a batch costs there is not known here.
    cost = BatchCost(max_tokens=256, call_tokens=16)

    def __init__(self, member: str, output_names: Sequence[str]) -> None:
        self._member = member
        self._output_names = list(output_names)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `Engine.run`; the call waits for the member's answer."""
        import triton_python_backend_utils as pb_utils

        request = pb_utils.InferenceRequest(
            model_name=self._member,
            requested_output_names=self._output_names,
            inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
            # else it may come back on a GPU, where NumPy cannot look
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"Triton's backend failed: {response.error().message()}")
        found = {
            name: pb_utils.get_output_tensor_by_name(response, name) for name in self._output_names
        }
        missing = [name for name, tensor in found.items() if tensor is None]
        if missing:
            raise EngineError(f"Triton's backend gave no output {missing[0]!r}.")
        return {name: tensor.as_numpy() for name, tensor in found.items()}
