"""An infer request that was begun below ASGI and has to go on in a task of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlplane.gateway import v2
    from controlplane.gateway.upstream_connection import Answer
    from controlplane.lifecycle.lease import Lease


@dataclass(frozen=True)
class Begun:
    """What is known of it; its bytes go through the ordinary way from the start.

    Attributes:
        started: on `time.perf_counter()`.
        loss: it met a dead process, and is to be sent once more when that has been noticed.
        lease, answer: Triton has begun to answer, with more than is waited for.
    """

    trace: str
    started: float
    terms: v2.Terms
    loss: v2.Loss | None = None
    lease: Lease | None = None
    answer: Answer | None = None

    def close(self) -> None:
        """Let go of what it still holds."""
        if self.answer is not None:
            self.answer.drop()
        if self.lease is not None:
            self.lease.leave()
