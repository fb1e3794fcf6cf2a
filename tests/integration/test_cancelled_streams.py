"""Clients that leave in the middle of an answer: Triton lives, and lets the model go.

Triton 2.51 dies, with all models, when a decoupled request's end comes while it deals with the
cancellation of its stream (gRPC front end: `ASSERTION FAILED: prior > 0`, or a segmentation fault);
`backends.triton.send_last` keeps the two apart.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_tensors
import tritonclient.grpc.aio as triton_grpc

from controlplane.lifecycle.memory import alive
from controlplane.lifecycle.unloading import Unloading
from controlplane.registry.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = pytest.mark.triton

NAME = "tests--talker"
STREAMS, ROUNDS = 16, 6

# A response each millisecond, until nobody listens.
MODEL = """
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from backends import triton


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.talk, args=(sender,), daemon=True).start()

    def talk(self, sender):
        word = pb_utils.Tensor("text_output", np.array([b"word"], dtype=object))
        for _ in range(300):
            if sender.is_cancelled():
                break
            time.sleep(0.001)
            sender.send(pb_utils.InferenceResponse([word]))
        triton.send_last(sender, pb_utils.InferenceResponse([word]))
"""
CONFIG = f"""
name: "{NAME}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [ {{ name: "text_input" data_type: TYPE_STRING dims: [1] }} ]
output [ {{ name: "text_output" data_type: TYPE_STRING dims: [1] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
version_policy {{ specific {{ versions: [1] }} }}
"""


async def listen(url: str, seconds: float, *, half_closed: bool) -> None:
    """Ask, listen for so long, and go away.

    Args:
        half_closed: nothing more will be asked on the stream, and Triton knows.
    """
    client = triton_grpc.InferenceServerClient(url)
    tensor = grpc_tensors.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"go on"], dtype=np.object_))
    gone = asyncio.Event()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": NAME, "inputs": [tensor]}
        if not half_closed:
            await gone.wait()

    stream = client.stream_infer(requests())

    async def hear() -> None:
        async for _, error in stream:
            assert error is None

    listening = asyncio.ensure_future(hear())
    await asyncio.sleep(seconds)
    stream.cancel()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    gone.set()
    await client.close()


async def test_triton_outlives_listeners_that_leave_and_lets_the_model_go(
    triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    folder = triton.repository / NAME / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    (folder.parent / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    server = triton.server.pid
    unloading = Unloading(triton_client, triton.server, ModelRepository(triton.repository))
    await triton_client.load(NAME, timeout=60)
    unloading.note_process((NAME, 1))
    (process_id,) = triton.server.stub_pids(NAME, 1)
    moments = random.Random(1)
    for _ in range(ROUNDS):
        listeners = [
            listen(triton.endpoints.grpc_url, moments.uniform(0, 0.5), half_closed=number % 2 == 0)
            for number in range(STREAMS)
        ]
        await asyncio.gather(*listeners)
    began = asyncio.get_running_loop().time()
    await unloading.unload(NAME, 1, timeout=50)
    assert asyncio.get_running_loop().time() - began < 30
    assert not alive(process_id)
    assert triton.server.pid == server  # other models were not disturbed
