"""Rule 8: switching the version of a model that requests get when they name none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from controlplane.lifecycle.state import ModelState
from controlplane.lifecycle.switch import Switch, SwitchMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controlplane.lifecycle.ledger import Ledger
    from controlplane.lifecycle.resident import Resident
    from controlplane.lifecycle.transitions import Effects, Transitions
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)


class Switching:
    """Carries out switches; one of a model at a time."""

    def __init__(self, ledger: Ledger, transitions: Transitions, effects: Effects) -> None:
        self._ledger = ledger
        self._transitions = transitions
        self._effects = effects

    async def switch(
        self,
        current: Callable[[], Servable],
        new: Servable,
        *,
        lease_new: Callable[[Servable], Awaitable[object]],
        release: Callable[[Resident], None],
        commit: Callable[[], object],
    ) -> SwitchMode:
        """What `Scheduler.switch` says; `lease_new` and `release` are its own."""
        ledger = self._ledger
        while (running := ledger.switches.get(new.triton_name)) is not None:
            await asyncio.wait({running.done})
        old = current()
        leaving, coming = ledger.resident(old), ledger.resident(new)
        if leaving is coming or not leaving.holds_memory:
            commit()
            leaving.desired, coming.desired = False, leaving.desired or coming.desired
            self._hand_over(leaving, coming)
            return SwitchMode.UNLOADED
        coming.retry_at = 0.0  # somebody says so: as with an explicit load
        done = asyncio.get_running_loop().create_future()
        switch = Switch(leaving, coming, done, self._effects.fit_together(old, new))
        ledger.switches[new.triton_name] = switch
        leaving.switching = coming.switching = True
        try:
            # A lease: nothing may take the new version out of memory before it is the current one.
            await lease_new(msgspec.structs.replace(new, floating=False))
            try:
                self._change_over(switch, commit)
            finally:
                release(switch.new)
        except BaseException:
            self._call_off(switch)
            raise
        self._transitions.spawn(self._finish(switch))  # also when nobody waits for it any more
        await asyncio.shield(done)
        return SwitchMode.DRAINED if switch.drained else SwitchMode.LIVE

    def _change_over(self, switch: Switch, commit: Callable[[], object]) -> None:
        commit()
        switch.redirects = True
        switch.old.desired = False
        self._hand_over(switch.old, switch.new)
        if switch.old.state is ModelState.LOADED:
            self._transitions.begin_unload(switch.old, "version_switch")

    def drain_first(self, switch: Switch, why: str) -> None:
        """Both cannot be in memory: the old version leaves before the new one is loaded."""
        log.warning(
            "two versions cannot be in memory together: requests wait during the switch",
            model_id=switch.new.model_id,
            old_version=switch.old.servable.version,
            new_version=switch.new.servable.version,
            reason=why,
        )
        switch.drained = switch.redirects = True
        self._transitions.begin_unload(switch.old, "version_switch")

    def load_failed(self, resident: Resident) -> None:
        """Give the new version's waiters back to the old one, before they are told of a failure."""
        switch = self._ledger.switch_of(resident)
        if switch is not None and switch.new is resident:
            switch.redirects = False  # now, not when the switch notices: nobody may fail meanwhile
            self._hand_over(resident, switch.old)

    def _hand_over(self, source: Resident, target: Resident) -> None:
        """Give those who wait for one version, and named none, to another."""
        moved = [waiter for waiter in source.waiters if waiter.floating]
        if not moved or target is source or target.need_mb > self._ledger.budget_mb:
            return
        source.waiters[:] = [waiter for waiter in source.waiters if not waiter.floating]
        for waiter in moved:
            waiter.resident = target
        target.waiters += moved
        self._ledger.active[target.servable.key] = target
        if target.state is ModelState.FAILED and target.error is not None:
            target.fail_waiters(target.error)
        elif target.state is ModelState.LOADED:
            target.serve_waiters(self._ledger.now())
        self._transitions.then_decide()

    async def _finish(self, switch: Switch) -> None:
        if switch.old.holds_memory and switch.old.gone is not None:
            await asyncio.wait({switch.old.gone})
        self._end(switch)

    def _call_off(self, switch: Switch) -> None:
        """The new version does not serve: requests go to the old one as before."""
        switch.redirects = False
        self._hand_over(switch.new, switch.old)
        self._transitions.spawn(self._clear_away(switch))

    async def _clear_away(self, switch: Switch) -> None:
        """Out of memory with a new version that came too late, or could not be made current."""
        if switch.new.state is ModelState.LOADING and switch.new.effect is not None:
            await asyncio.wait({switch.new.effect})
        wanted = switch.old.holds_memory or switch.old.waiters
        if switch.new.state is ModelState.LOADED and wanted:
            self._transitions.begin_unload(switch.new, "version_switch")
        self._end(switch)

    def _end(self, switch: Switch) -> None:
        del self._ledger.switches[switch.new.servable.triton_name]
        switch.old.switching = switch.new.switching = False
        switch.done.set_result(None)
        self._transitions.then_decide()
