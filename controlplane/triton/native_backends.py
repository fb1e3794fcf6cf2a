"""Which of its own backends a Triton server has.

Triton has no call that lists them. But it looks for a backend's library before it looks at a
model, so a load of something that is no model tells: "unable to find backend library" or another
complaint (seen in 2.51; the text is that of its core, backend_model.cc).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import structlog

from controlplane.triton.failures import ModelFailed, RequestRejected, TritonError, TritonTimeout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.triton.client import TritonClient

log = structlog.get_logger(__name__)

TIMEOUT = 20.0
_ABSENT = "unable to find backend"
_TENSOR = {"name": "x", "data_type": "TYPE_FP32", "dims": [1]}


async def find_native_backends(client: TritonClient, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of `wanted` that the server has, in that order.

    Raises:
        TritonError: the server does not answer, or takes no loads.
    """
    found = []
    for backend in wanted:
        there = await _has(client, backend)
        log.info("Triton's own backend", backend=backend, available=there)
        found += [backend] if there else []
    return tuple(found)


async def _has(client: TritonClient, backend: str) -> bool:
    name = f"modelmora--probe--{backend}"
    config = {
        "backend": backend,
        "max_batch_size": 0,
        "default_model_filename": "model.onnx",
        "input": [_TENSOR],
        "output": [_TENSOR | {"name": "y"}],
    }
    files = {"1/model.onnx": b"no model"}
    try:
        await client.load(name, json.dumps(config), timeout=TIMEOUT, files=files)
    except (ModelFailed, RequestRejected) as error:
        return _ABSENT not in str(error)
    except TritonTimeout as error:  # whatever it does, it is not to be relied on
        log.warning("Triton does not tell", backend=backend, reason=str(error))
        return False
    await _unload(client, name)  # it took it for a model
    return True


async def _unload(client: TritonClient, name: str) -> None:
    try:
        await client.unload(name, timeout=TIMEOUT)
    except TritonError as error:
        log.warning("a probe of a backend is left in Triton", model=name, reason=str(error))
