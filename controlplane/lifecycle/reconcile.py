"""Brings Triton to what we know, when somebody else loaded or unloaded models behind our back.

A version of ours that is loaded though we did not load it (a stray) is unloaded: its memory is in
nobody's ledger, and a version that serves with a configuration of unknown origin is worse than a
load at the next request. One that we had loaded and is loaded no more is lost: its next request
loads it again. Models that are not ours are left alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import structlog

from controlplane.errors import ModelMoraError
from controlplane.lifecycle.elsewhere import Elsewhere
from controlplane.lifecycle.state import ModelState
from controlplane.triton.failures import TritonError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from controlplane.lifecycle.effects import TritonEffects
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.scheduler import Scheduler
    from controlplane.triton.client import IndexEntry, TritonClient

log = structlog.get_logger(__name__)

RECONCILE_EVERY = 10.0

Key = tuple[str, int]


class Differences(NamedTuple):
    """Triton names and versions: loaded without us; thought to be loaded, and not."""

    strays: list[Key]
    lost: list[Key]


def differences(
    index: Iterable[IndexEntry], states: Mapping[Key, ModelState], ours: Collection[str]
) -> Differences:
    """Compare Triton's repository index with what we know.

    Args:
        states: of all residents; models on their way in or out are no differences.
        ours: Triton names of registered models.
    """
    ready = {(e.name, e.version) for e in index if e.state == "READY" and e.version is not None}
    wanted = {key for key, state in states.items() if state in _IN_TRITON}
    loaded = {key for key, state in states.items() if state is ModelState.LOADED}
    strays = [key for key in ready - wanted if key[0] in ours]
    return Differences(sorted(strays), sorted(loaded - ready))


# States in which Triton may rightly have the model loaded.
_IN_TRITON = frozenset(
    {ModelState.LOADING, ModelState.LOADED, ModelState.UNHEALTHY, ModelState.UNLOADING}
)


class Reconciler:
    """Compares at intervals, and whenever it is told to."""

    def __init__(
        self,
        client: TritonClient,
        effects: TritonEffects,
        scheduler: Scheduler,
        ours: Callable[[], Collection[str]],
        *,
        is_up: Callable[[], bool],
        every: float = RECONCILE_EVERY,
    ) -> None:
        """
        Args:
            ours: Triton names of the models that are registered now.
            is_up: whether Triton answers; nothing is compared while it does not.
            every: seconds between two looks.
        """
        self._client = client
        self._effects = effects
        self._scheduler = scheduler
        self._ours = ours
        self._is_up = is_up
        self._every = every
        self._elsewhere = Elsewhere(client, scheduler, effects.probes)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin comparing."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="reconcile")

    async def stop(self) -> None:
        """End comparing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            if self._is_up():
                await self.run_once()

    async def run_once(self) -> Differences:
        """Compare and mend; what was found. Failures are logged: there is a next time."""
        found = Differences([], [])
        try:
            found = await self._reconcile()
            await self._elsewhere.look()
        except (TritonError, ModelMoraError) as error:
            log.warning("Triton's models could not be compared", reason=str(error))
        except Exception:  # it must go on, whatever a single look ran into
            log.exception("reconciliation failed")
        return found

    async def _reconcile(self) -> Differences:
        before = {r.servable.key: (r, r.state, r.loaded_clock) for r in self._residents()}
        index = await self._client.index()
        # What changed while we asked is no difference: the index may be older or newer.
        states = {r.servable.key: r.state for r in self._residents()}
        strays, lost = differences(index, states, self._ours())
        strays = [key for key in strays if key not in before]
        for key in lost:
            resident, state, clock = before.get(key, (None, None, 0.0))
            same = state is ModelState.LOADED and resident and resident.loaded_clock == clock
            if same and resident is not None:
                self._mark_lost(resident)
        for key in strays:
            await self._unload_stray(*key)
        return Differences(strays, lost)

    def _residents(self) -> list[Resident]:
        return [r for r in self._scheduler.residents() if r.holds_memory]

    def _mark_lost(self, resident: Resident) -> None:
        log.warning("somebody else has unloaded a model", model_id=resident.model_id, was="loaded")
        self._scheduler.vanished(resident)

    async def _unload_stray(self, name: str, number: int) -> None:
        key = (name, number)

        def is_stray() -> bool:
            return all(r.servable.key != key for r in self._residents())

        if await self._effects.unload_stray(name, number, is_stray):
            log.warning(
                "unloaded a model that somebody else had loaded", model=name, triton_version=number
            )
