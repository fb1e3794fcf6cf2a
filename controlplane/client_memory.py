"""The client's operation on what models took in memory; see `client_operations`."""

from __future__ import annotations

from datetime import datetime

import msgspec

from controlplane.client_steps import Steps, ask, given, model_path
from controlplane.client_types import Pagination


class MemoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a version took when it was measured, in MB; `reason` is load or change."""

    version: str
    measured_at: datetime
    used_mb: float
    peak_mb: float
    reason: str
    gpu_vram_mb: float | None = None


class MemoryPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[MemoryRecord]
    pagination: Pagination


def memory(
    model_id: str, version: str | None = None, *, page: int = 1, page_size: int = 20
) -> Steps[MemoryPage]:
    """What a model took in memory, the newest first; `page` from 1, `page_size` 1 to 100."""
    params = given(version=version) | {"page": page, "page_size": page_size}
    return ask("GET", model_path(model_id, "/memory"), MemoryPage, params=params)
