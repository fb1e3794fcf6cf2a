"""Health of a loaded model: the outcome of test inferences (domain §3.7)."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECK_INTERVAL = 30.0
STALE_AFTER = 60.0
PROBE_TIMEOUT = 10.0
FAILURES_UNTIL_UNHEALTHY = 3
FAILURES_UNTIL_RESTART = 5
DEGRADED_MS = 3000.0
SLOW_MS = 5000.0
# A model that computes for so long without answering a test inference counts as hanging: no
# request may take longer (settings, `request_timeout`).
BUSY_LIMIT = 600.0

NUMPY_TYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


class HealthStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The last check's outcome; error messages are cut to 1000 characters."""

    healthy: bool
    last_check: datetime
    error_message: str | None = None
    consecutive_failures: int = 0
    response_time_ms: float | None = None

    @property
    def degraded(self) -> bool:
        """Answers, but slowly (domain §3.7)."""
        return self.healthy and (self.response_time_ms or 0.0) > DEGRADED_MS

    @property
    def slow(self) -> bool:
        """The check took so long that somebody should look at it."""
        return (self.response_time_ms or 0.0) > SLOW_MS

    @property
    def failing_often(self) -> bool:
        """So many failures in a row that somebody should look at it."""
        return self.consecutive_failures > FAILURES_UNTIL_UNHEALTHY

    @property
    def requires_restart(self) -> bool:
        """So many failures in a row that running requests are not waited for any more."""
        return self.consecutive_failures >= FAILURES_UNTIL_RESTART

    def stale(self, now: datetime, max_age: float = STALE_AFTER) -> bool:
        """Too old, in seconds, to tell how the model is now."""
        return (now - self.last_check).total_seconds() > max_age

    @property
    def must_leave(self) -> bool:
        """True when so many checks failed in a row that the model counts as unhealthy."""
        return not self.healthy and self.consecutive_failures >= FAILURES_UNTIL_UNHEALTHY


def after_success(now: datetime, response_time_ms: float) -> HealthStatus:
    """The status after a check that was answered."""
    return HealthStatus(healthy=True, last_check=now, response_time_ms=response_time_ms)


def after_failure(previous: HealthStatus | None, now: datetime, message: str) -> HealthStatus:
    """The status after a check that failed: failures in a row add up (domain C-70)."""
    failures = 1 + (previous.consecutive_failures if previous else 0)
    return HealthStatus(
        healthy=False,
        last_check=now,
        error_message=message[:1000],
        consecutive_failures=failures,
    )


def after_busy(previous: HealthStatus | None, now: datetime) -> HealthStatus:
    """The status after a check that was not answered while the model computed for others."""
    if previous is None:
        return HealthStatus(healthy=True, last_check=now)
    return msgspec.structs.replace(previous, last_check=now)


def probe_inputs(manifest: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A smallest valid input for a model: what its manifest's `probe` says, else made up.

    The manifest's `probe.inputs` holds a text per BYTES input, or `{"base64": …}` where the bytes
    are no text (an image); inputs that it leaves out are left out. Made up are one text per BYTES
    input and zeros elsewhere, optional inputs too. Shapes are those of the manifest with a batch
    dimension of 1 in front where the model batches; open dimensions become 1.
    """
    batch = [1] if manifest.get("max_batch_size", 0) > 0 else []
    given = manifest.get("probe", {}).get("inputs")
    inputs = {}
    for tensor in manifest["inputs"]:
        name, datatype = tensor["name"], tensor["datatype"]
        if given is not None and name not in given:
            continue
        shape = batch + [1 if size < 0 else size for size in tensor["shape"]]
        if datatype == "BYTES":
            content = _probe_bytes(given[name] if given else "health check")
            inputs[name] = np.empty(shape, dtype=np.object_)
            inputs[name].fill(content)  # np.full would cut the zeros at the end of the bytes
        else:
            inputs[name] = np.zeros(shape, dtype=NUMPY_TYPES[datatype])
    return inputs


def probe_parameters(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Request parameters of a test inference, e.g. that one token is enough."""
    return dict(manifest.get("probe", {}).get("parameters", {}))


def _probe_bytes(value: str | Mapping[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def probe_fault(outputs: Mapping[str, np.ndarray[Any, Any]], expected: list[str]) -> str | None:
    """What is wrong with the answer to a probe; None when nothing is."""
    missing = [name for name in expected if name not in outputs]
    if missing:
        return f"the test inference lacks the output {missing[0]!r}"
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"the test inference gave values that are not finite in {name!r}"
    return None
