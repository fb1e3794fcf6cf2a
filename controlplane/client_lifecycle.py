"""The client's operations on models' stay in memory; see `client_operations`. Memory in MB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.client_steps import Steps, ask, given, model_path
from controlplane.client_types import ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """Times of test inferences, ms; `wait_seconds` is the time until the model served."""

    model_id: str
    version: str
    wait_seconds: float
    times_ms: list[float]
    first_ms: float
    median_ms: float
    slowest_ms: float


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """A model that would leave memory, and why."""

    model_id: str
    version: str
    memory_mb: float
    reason: str


class PlanStep(msgspec.Struct, frozen=True, kw_only=True):
    """What loading one model means; `verdict`: loaded, fits, evicts, waits or never."""

    model_id: str
    version: str
    need_mb: float
    need_source: str
    verdict: str
    evictions: list[Leaving] = []
    used_mb_before: float = 0.0
    used_mb_after: float = 0.0
    reason: str | None = None


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What loading some models would do, one step per model."""

    fits: bool
    budget_mb: float
    max_models: int
    used_mb_before: float
    used_mb_after: float
    models: list[PlanStep]


def keep(model_id: str) -> Steps[ModelInfo]:
    """Have a model stay in memory; it is loaded when it is ready and there is room."""
    return ask("PUT", model_path(model_id), ModelInfo, json={"keep_loaded": True})


def release(model_id: str) -> Steps[ModelInfo]:
    """Let a model be evicted again; it stays until others need its room."""
    return ask("PUT", model_path(model_id), ModelInfo, json={"keep_loaded": False})


def warm_up(model_id: str, version: str | None = None, *, samples: int = 10) -> Steps[WarmUp]:
    """Load a model if need be and run `samples` test inferences, 1 to 1000, on it."""
    body = {"samples": samples} | given(version=version)
    return ask("POST", model_path(model_id, "/warmup"), WarmUp, json=body, timeout=None)


def plan(models: Sequence[str | tuple[str, str | None]]) -> Steps[LoadPlan]:
    """What loading these models in this order would evict, and whether they fit together.

    Args:
        models: model ids, or pairs of model id and version. Nothing is loaded.
    """
    pairs = [(model, None) if isinstance(model, str) else model for model in models]
    listed = [{"model_id": name} | given(version=version) for name, version in pairs]
    return ask("POST", "/api/v1/lifecycle/plan", LoadPlan, json={"models": listed})
