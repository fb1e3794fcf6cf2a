"""Has the scheduler follow what the catalog says of models' stay in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from controlplane import events
from controlplane.errors import ModelMoraError, ModelNotFound, ModelNotReady
from controlplane.lifecycle.policy import ModelPolicy

if TYPE_CHECKING:
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.registry.model import Model
    from controlplane.registry.store import ModelStore

log = structlog.get_logger(__name__)

_FIELDS = {"keep_loaded", "idle_ttl"}


class Keeping:
    """Listens to the catalog. A kept model is loaded when it is marked, and when it is ready."""

    def __init__(self, store: ModelStore, scheduler: Scheduler, bus: events.EventBus) -> None:
        self._store = store
        self._scheduler = scheduler
        for model in store.models_with_policy():
            self._scheduler.set_policy(model.model_id, _policy(model))
        bus.subscribe(events.ModelRegistered, lambda event: self.follow(event.model_id))
        bus.subscribe(events.ModelUpdated, self._updated)
        bus.subscribe(events.ModelVersionStatusChanged, lambda event: self._bring(event.model_id))
        bus.subscribe(events.ModelVersionChanged, lambda event: self._bring(event.model_id))
        bus.subscribe(events.ModelUnregistered, self._gone)

    def bring_all(self) -> None:
        """Have all kept models loaded; at start, when the server can."""
        for model in self._store.models_with_policy():
            self._bring(model.model_id)

    def follow(self, model_id: str) -> None:
        """Hand a model's policy on to the scheduler."""
        try:
            policy = _policy(self._store.get(model_id))
        except ModelNotFound:
            return
        self._scheduler.set_policy(model_id, policy)
        self._bring(model_id)

    def _bring(self, model_id: str) -> None:
        if not self._scheduler.policy_of(model_id).keep_loaded:
            return
        try:
            self._scheduler.want(self._store.servable(model_id))
        except ModelNotReady:
            log.info("a kept model is loaded when it is ready", model_id=model_id)
        except ModelMoraError as error:
            log.warning("a kept model cannot be loaded", model_id=model_id, reason=error.message)

    def _updated(self, event: events.ModelUpdated) -> None:
        if _FIELDS & set(event.fields):
            self.follow(event.model_id)

    def _gone(self, event: events.ModelUnregistered) -> None:
        self._scheduler.set_policy(event.model_id, ModelPolicy())


def _policy(model: Model) -> ModelPolicy:
    return ModelPolicy(keep_loaded=model.keep_loaded, idle_ttl=model.idle_ttl)
