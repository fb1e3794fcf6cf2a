"""Models that are to stay in memory: which they are, and whether they fit there together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.errors import KeptModelsTooLarge
from controlplane.registry.rows import query, read_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlite_utils import Database

    from controlplane.registry.model import Model


class MemoryLimits(msgspec.Struct, frozen=True):
    """What may be in memory at a time."""

    budget_mb: float
    max_models: int


def models_with_policy(db: Database) -> tuple[Model, ...]:
    """Models that are kept or have an idle time of their own, by model id."""
    sql = "SELECT * FROM model WHERE keep_loaded = 1 OR idle_ttl IS NOT NULL ORDER BY model_id"
    return read_models(db, query(db, sql))


def kept_models(db: Database) -> tuple[Model, ...]:
    """Models that are kept, by model id."""
    return read_models(db, query(db, "SELECT * FROM model WHERE keep_loaded = 1 ORDER BY model_id"))


def check_kept(model_id: str, kept: Sequence[Model], limits: MemoryLimits) -> None:
    """Refuse a mark that cannot be honoured.

    A model that is not installed yet counts with what it declares, else with nothing worth
    mentioning: what it needs is found out later.

    Args:
        model_id: the model that was marked last.
        kept: all that would be kept, that one among them.

    Raises:
        KeptModelsTooLarge: together they need more than the limits.
    """
    need = sum(model.current.need_mb for model in kept)
    if need > limits.budget_mb or len(kept) > limits.max_models:
        raise KeptModelsTooLarge(model_id, need, len(kept), limits.budget_mb, limits.max_models)
