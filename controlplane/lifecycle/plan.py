"""What a load would do, without doing it: a pure function over a snapshot of memory.

It says what would happen if nothing else came: requests that come meanwhile may change it.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from controlplane.lifecycle.policy import Candidate, Room, evictions_for
from controlplane.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Sequence

Key = tuple[str, int]


class Verdict(str, Enum):
    """What becomes of a model that is to be loaded."""

    LOADED = "loaded"  # it is in memory, or on its way there
    FITS = "fits"  # there is room
    EVICTS = "evicts"  # idle models leave for it
    WAITS = "waits"  # it fits once running requests have ended, or memory has come back
    NEVER = "never"  # not as long as the models that are to stay do

    def __str__(self) -> str:
        return self.value


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is to be loaded; `source` of the figure: measured, declared or estimated."""

    model_id: str
    version: str
    key: Key
    need_mb: float
    source: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A model that counts against the budget.

    Attributes:
        idle_seconds: since it was last used.
        in_use: somebody holds a lease or waits for it.
        stays: it is kept, or part of a switch of versions.
    """

    model_id: str
    version: str
    key: Key
    memory_mb: float
    state: ModelState
    idle_seconds: float
    in_use: bool
    stays: bool


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Memory at one moment, in MB."""

    budget_mb: float
    max_models: int
    held: tuple[Held, ...]


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """A model that would leave, and why that one."""

    model_id: str
    version: str
    memory_mb: float
    reason: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What loading one model means, after the steps before it.

    Attributes:
        leaving: in the order of leaving.
        reason: why it has to wait, or can never fit; empty otherwise.
    """

    model_id: str
    version: str
    need_mb: float
    source: str
    verdict: Verdict
    leaving: tuple[Leaving, ...]
    reason: str
    used_mb_before: float
    used_mb_after: float


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All steps; `fits` when all models would be in memory together, sooner or later."""

    budget_mb: float
    max_models: int
    used_mb_before: float
    used_mb_after: float
    fits: bool
    steps: tuple[Step, ...]


def plan(snapshot: Snapshot, needs: Sequence[Need]) -> LoadPlan:
    """What loading `needs`, in this order, would evict and whether it fits.

    Models of the plan do not evict one another: the question is whether they can be there together.
    """
    held = {model.key: model for model in snapshot.held}
    wanted = {need.key for need in needs}
    steps: list[Step] = []
    for need in needs:
        steps.append(_step(snapshot, held, need, wanted))
    return LoadPlan(
        budget_mb=snapshot.budget_mb,
        max_models=snapshot.max_models,
        used_mb_before=sum(model.memory_mb for model in snapshot.held),
        used_mb_after=sum(model.memory_mb for model in held.values()),
        fits=all(step.verdict is not Verdict.NEVER for step in steps),
        steps=tuple(steps),
    )


def _step(snapshot: Snapshot, held: dict[Key, Held], need: Need, wanted: set[Key]) -> Step:
    """One step; `held` is changed to what is in memory after it."""
    before = _used(held)
    known = held.get(need.key)
    if known is not None and known.state is not ModelState.UNLOADING:
        return _done(need, Verdict.LOADED, (), "", before, before)
    rivals = [m for m in held.values() if m.key[0] == need.key[0]]
    others = [m for m in held.values() if m.key[0] != need.key[0]]
    room = _room(snapshot, held, rivals)
    chosen = _choose(room, need, others, wanted, busy=False)
    if chosen is None:
        chosen = _choose(room, need, others, wanted, busy=True)
    if chosen is None:
        return _done(need, Verdict.NEVER, (), _why_never(snapshot, need, wanted), before, before)
    gone = [*rivals, *chosen]
    verdict, reason = _verdict(snapshot, held, need, gone)
    for model in gone:
        del held[model.key]
    for model in [m for m in held.values() if m.state is ModelState.UNLOADING]:
        del held[model.key]
    held[need.key] = Held(
        model_id=need.model_id,
        version=need.version,
        key=need.key,
        memory_mb=need.need_mb,
        state=ModelState.LOADED,
        idle_seconds=0.0,
        in_use=False,
        stays=True,
    )
    leaving = tuple(_leaving(model, need) for model in gone)
    return _done(need, verdict, leaving, reason, before, _used(held))


def _room(snapshot: Snapshot, held: dict[Key, Held], rivals: Sequence[Held]) -> Room:
    """What is free once other versions of the model, and what is leaving anyway, have left."""
    staying = [m for m in held.values() if m not in rivals and m.state is not ModelState.UNLOADING]
    used = sum(model.memory_mb for model in staying)
    return Room(snapshot.budget_mb - used, snapshot.max_models - len(staying))


def _choose(
    room: Room, need: Need, others: Sequence[Held], wanted: set[Key], *, busy: bool
) -> list[Held] | None:
    def may_leave(model: Held) -> bool:
        protected = model.stays or model.key in wanted or model.state is ModelState.UNLOADING
        idle = model.state is ModelState.LOADED and not model.in_use
        return not protected and (busy or idle)

    candidates = [
        Candidate(m.key, m.memory_mb, -m.idle_seconds, may_leave(m))
        for m in others
        if m.state is not ModelState.UNLOADING
    ]
    victims = evictions_for(Room(need.need_mb, 1), room, candidates)
    by_key = {model.key: model for model in others}
    return None if victims is None else [by_key[victim.key] for victim in victims]


def _verdict(
    snapshot: Snapshot, held: dict[Key, Held], need: Need, gone: Sequence[Held]
) -> tuple[Verdict, str]:
    slow = [m for m in gone if m.in_use or m.state is not ModelState.LOADED]
    leaving = [m for m in held.values() if m.state is ModelState.UNLOADING and m not in slow]
    staying = [m for m in held.values() if m not in gone]
    fits_beside = (
        need.need_mb <= snapshot.budget_mb - sum(m.memory_mb for m in staying)
        and len(staying) < snapshot.max_models
    )
    if slow or not fits_beside:
        names = ", ".join(m.model_id for m in (slow if fits_beside else [*slow, *leaving]))
        return Verdict.WAITS, f"until {names} has left"
    return (Verdict.EVICTS if gone else Verdict.FITS), ""


def _why_never(snapshot: Snapshot, need: Need, wanted: set[Key]) -> str:
    if need.need_mb > snapshot.budget_mb:
        return f"it needs more than the whole budget of {snapshot.budget_mb:.0f} MB"
    stay = [m for m in snapshot.held if m.stays and m.key not in wanted]
    kept = sum(model.memory_mb for model in stay)
    if need.need_mb > snapshot.budget_mb - kept or len(stay) >= snapshot.max_models:
        return f"{len(stay)} models that are to stay hold {kept:.0f} MB"
    return "not together with the other models of this plan"


def _leaving(model: Held, need: Need) -> Leaving:
    if model.state is ModelState.UNLOADING:
        reason = "it is leaving already"
    elif model.key[0] == need.key[0]:
        reason = "another version of the model"
    elif model.in_use:
        reason = "in use; it leaves when its requests have ended"
    else:
        reason = f"least recently used, idle for {model.idle_seconds:.0f} s"
    return Leaving(
        model_id=model.model_id, version=model.version, memory_mb=model.memory_mb, reason=reason
    )


def _done(
    need: Need,
    verdict: Verdict,
    leaving: tuple[Leaving, ...],
    reason: str,
    before: float,
    after: float,
) -> Step:
    return Step(
        model_id=need.model_id,
        version=need.version,
        need_mb=need.need_mb,
        source=need.source,
        verdict=verdict,
        leaving=leaving,
        reason=reason,
        used_mb_before=before,
        used_mb_after=after,
    )


def _used(held: dict[Key, Held]) -> float:
    return sum(model.memory_mb for model in held.values())
