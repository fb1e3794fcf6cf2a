"""The JSON bodies of warm-ups and load plans; memory in MB, times of inferences in ms."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import Id, Request, Version

if TYPE_CHECKING:
    from controlplane.lifecycle.plan import LoadPlan, Step
    from controlplane.lifecycle.warmup import WarmUp

MOST_PLANNED = 1000


class WarmUpRequest(Request):
    samples: Annotated[int, Meta(description="Test inferences to run, 1 to 1000.")] = 10
    version: Version | None = None


class WarmUpResponse(msgspec.Struct, kw_only=True):
    """`wait_seconds` is the time until the model served: near 0 when it was loaded already."""

    model_id: Id
    version: Version
    wait_seconds: float
    times_ms: list[float]
    first_ms: float
    median_ms: float
    slowest_ms: float

    @classmethod
    def of(cls, done: WarmUp) -> WarmUpResponse:
        return cls(
            model_id=done.model_id,
            version=done.version,
            wait_seconds=round(done.wait_seconds, 3),
            times_ms=[round(ms, 3) for ms in done.times_ms],
            first_ms=round(done.times_ms[0], 3),
            median_ms=round(statistics.median(done.times_ms), 3),
            slowest_ms=round(max(done.times_ms), 3),
        )


class PlannedModel(Request):
    model_id: Id
    version: Version | None = None


class PlanRequest(Request):
    models: list[PlannedModel]


class LeavingBody(msgspec.Struct, kw_only=True):
    """A model that would leave memory, and why that one."""

    model_id: Id
    version: Version
    memory_mb: float
    reason: str


class PlanStepBody(msgspec.Struct, kw_only=True):
    """`verdict`: loaded already; fits; evicts idle models; waits for requests to end; never."""

    model_id: Id
    version: Version
    need_mb: float
    need_source: Literal["measured", "declared", "estimated"]
    verdict: Literal["loaded", "fits", "evicts", "waits", "never"]
    evictions: list[LeavingBody]
    used_mb_before: float
    used_mb_after: float
    reason: str | UnsetType = UNSET

    @classmethod
    def of(cls, step: Step) -> PlanStepBody:
        return cls(
            model_id=step.model_id,
            version=step.version,
            need_mb=round(step.need_mb, 1),
            need_source=step.source,  # type: ignore[arg-type]
            verdict=step.verdict.value,
            evictions=[
                LeavingBody(
                    model_id=model.model_id,
                    version=model.version,
                    memory_mb=round(model.memory_mb, 1),
                    reason=model.reason,
                )
                for model in step.leaving
            ],
            used_mb_before=round(step.used_mb_before, 1),
            used_mb_after=round(step.used_mb_after, 1),
            reason=step.reason or UNSET,
        )


class PlanResponse(msgspec.Struct, kw_only=True):
    """One step per model, in the order of the request."""

    fits: Annotated[bool, Meta(description="All of them can be in memory together.")]
    budget_mb: float
    max_models: int
    used_mb_before: float
    used_mb_after: float
    models: list[PlanStepBody]

    @classmethod
    def of(cls, plan: LoadPlan) -> PlanResponse:
        return cls(
            fits=plan.fits,
            budget_mb=round(plan.budget_mb, 1),
            max_models=plan.max_models,
            used_mb_before=round(plan.used_mb_before, 1),
            used_mb_after=round(plan.used_mb_after, 1),
            models=[PlanStepBody.of(step) for step in plan.steps],
        )
