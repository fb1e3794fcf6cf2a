"""Routes on memory: what a model's versions took over time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
from litestar import get
from litestar.params import FromPath, QueryParameter
from msgspec import UNSET, UnsetType

from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import Pagination, present
from controlplane.gateway.services import GivenServices
from controlplane.registry.catalog import pick

if TYPE_CHECKING:
    from controlplane.registry.memory_history import MemoryRecord

TAGS = ["Lifecycle"]


class MemoryRecordResponse(msgspec.Struct, kw_only=True):
    """What a version took when it was measured, in MB."""

    version: str
    measured_at: datetime
    used_mb: float
    peak_mb: float
    reason: str
    gpu_vram_mb: float | UnsetType = UNSET

    @classmethod
    def of(cls, record: MemoryRecord) -> MemoryRecordResponse:
        """The record as JSON has it."""
        gpu_mb = None if record.gpu_mb is None else round(record.gpu_mb, 1)
        return cls(
            version=record.version,
            measured_at=record.at,
            used_mb=round(record.used_mb, 1),
            peak_mb=round(record.peak_mb, 1),
            reason=record.reason,
            gpu_vram_mb=present(gpu_mb),
        )


class MemoryPageResponse(msgspec.Struct, kw_only=True):
    data: list[MemoryRecordResponse]
    pagination: Pagination


@get(
    "/api/v1/models/{org:str}/{repo:str}/memory",
    operation_id="getModelMemory",
    summary="What a model took in memory",
    tags=TAGS,
    responses=failures(400, 404),
)
async def model_memory(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    version: Annotated[str | None, QueryParameter(description="Only of this version.")] = None,
    page: Annotated[int, QueryParameter(description="From 1.")] = 1,
    page_size: Annotated[int, QueryParameter(description="1 to 100.")] = 20,
) -> MemoryPageResponse:
    """Measurements, the newest first: one for each load (`load`), and one whenever what it takes
    has changed by a twentieth since the last (`change`). The newest 200 of a version are kept."""
    model = services.store.get(model_name(org, repo))
    wanted = model.versions if version is None else (pick(model, version),)
    found = services.store.memory_history.page(
        [one.id for one in wanted], page=page, page_size=page_size
    )
    return MemoryPageResponse(
        data=[MemoryRecordResponse.of(record) for record in found.items],
        pagination=Pagination.of(found),
    )


ROUTES = [model_memory]
