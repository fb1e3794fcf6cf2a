"""Is a ready-made model well? Its tensors are known, what it makes of them is not.

A made-up input (zeros, empty texts) may be nonsense to the model, and a model that says so is
alive: only silence, or the death of its process, counts as a failure. Values are not judged.

1. A model whose configuration says `modelmora_probe: ready`, or that has tensors nobody here can
   make up (BF16) or names none, is asked whether it is ready.
2. A decoupled model is asked over a stream; its first response, or its end, is the answer.
3. Others get one plain request; a model with sequences one that is a whole sequence.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from controlplane.lifecycle import health
from controlplane.triton.failures import ModelFailed, RequestRejected, TritonError, TritonTimeout
from controlplane.triton.ready_config import READY_MADE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlplane.triton.client import TritonClient

log = structlog.get_logger(__name__)

# Any number but 0, which means "no sequence" to Triton; clients' own are small or random.
SEQUENCE_ID = 2**63 - 25
_DEAD = "is not healthy"


def is_ready_made(manifest: Mapping[str, Any]) -> bool:
    """True for the manifest of a ready-made model."""
    return READY_MADE in manifest


async def probe(
    client: TritonClient, name: str, version: int, manifest: Mapping[str, Any]
) -> float:
    """Find out whether a model answers; the time it took in milliseconds.

    Raises:
        TritonTimeout: it does not in time.
        TritonError: it does not at all.
    """
    known = manifest[READY_MADE]
    started = time.perf_counter()
    inputs = made_up_inputs(manifest) if known["probe"] != "ready" else None
    if inputs is None:
        await _ask_ready(client, name, version)
    else:
        await _ask(client, name, version, inputs, known)
    return (time.perf_counter() - started) * 1000


def made_up_inputs(manifest: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]] | None:
    """The smallest request that fits: zeros and empty texts, optional inputs left out.

    None when there is no such thing: no inputs, or a type that numpy does not have.
    """
    batch = [1] if manifest["max_batch_size"] > 0 else []
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in manifest["inputs"]:
        if tensor.get("optional"):
            continue
        shape = batch + [1 if size < 0 else size for size in tensor["shape"]]
        if tensor["datatype"] == "BYTES":
            inputs[tensor["name"]] = np.full(shape, b"", dtype=np.object_)
        elif tensor["datatype"] in health.NUMPY_TYPES:
            inputs[tensor["name"]] = np.zeros(shape, dtype=health.NUMPY_TYPES[tensor["datatype"]])
        else:
            return None
    return inputs if manifest["inputs"] else None


async def _ask(
    client: TritonClient,
    name: str,
    version: int,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    known: Mapping[str, Any],
) -> None:
    timeout = health.PROBE_TIMEOUT
    try:
        if known["decoupled"]:
            await client.first_response(name, version, inputs, timeout=timeout)
        else:
            sequence = SEQUENCE_ID if known["sequence"] else 0
            await client.infer(name, version, inputs, (), timeout=timeout, sequence_id=sequence)
    except TritonTimeout as error:
        raise TritonTimeout(f"no answer to a test inference within {timeout:g} s") from error
    except (ModelFailed, RequestRejected) as error:
        if _DEAD in error.message:
            raise
        log.info("made-up input refused", model=name, version=version, answer=error.message[:200])
        await _ask_ready(client, name, version)


async def _ask_ready(client: TritonClient, name: str, version: int) -> None:
    if not await client.model_ready(name, version, timeout=health.PROBE_TIMEOUT):
        raise TritonError(f"Triton says that {name} version {version} is not ready")
