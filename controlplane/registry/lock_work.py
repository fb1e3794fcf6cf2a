"""What an operation on a lock is about, its steps and what it found. Rules only, no I/O."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from controlplane.registry.files import Progress
from controlplane.registry.lock_plan import Action

Part = Literal["model", "source", "artefact"]
StepState = Literal["waiting", "running", "done", "failed", "left"]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was.

    Attributes:
        part: what `path` belongs to; `model` when the locked version is not installed.
        expected, found: `sha256:…`, where both are files.
    """

    model_id: str
    version: str
    part: Part
    problem: Literal["missing", "changed", "unexpected", "not installed"]
    path: str | None = None
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        what = f"{self.model_id}@{self.version}"
        if self.path is None:
            return f"{what} is {self.problem}"
        digests = f", expected {self.expected}, found {self.found}" if self.found else ""
        return f"{what}: {self.part} file {self.path} is {self.problem}{digests}"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """An action of a sync and how it went.

    Attributes:
        state: `left` was not tried, since something before it failed or it is only told of.
        operation_id: the installation that does it.
        progress: of that installation, while it runs.
    """

    action: Action
    state: StepState = "waiting"
    error: str | None = None
    operation_id: str | None = None
    progress: Progress | None = None


class LockWork(msgspec.Struct, frozen=True, kw_only=True):
    """A sync or a verification of a lock.

    Attributes:
        lock: its name.
        lock_id, lock_version: which lock of that name, and which of its versions; None for a file
            that is not kept.
        frozen: change nothing; any difference is a failure.
        prune: remove models that are not in the lock.
        steps: of a sync, as planned when its turn came.
        drift: what verification found last.
    """

    lock: str
    lock_id: str | None = None
    lock_version: int | None = None
    frozen: bool = False
    prune: bool = False
    steps: tuple[Step, ...] = ()
    drift: tuple[Drift, ...] = ()

    def asks_the_same(self, other: LockWork) -> bool:
        """True when one of them does for both; never for a file that is not kept."""
        return self.lock_id is not None and _asked(self) == _asked(other)

    def planned(self, actions: tuple[Action, ...]) -> LockWork:
        """With these actions to take, none of them begun."""
        return msgspec.structs.replace(self, steps=tuple(Step(action=one) for one in actions))

    def with_step(self, index: int, **changes: Any) -> LockWork:
        """With one step changed; beyond the last one, added."""
        steps = list(self.steps)
        if index == len(steps):
            steps.append(Step(**changes))
        else:
            steps[index] = msgspec.structs.replace(steps[index], **changes)
        return msgspec.structs.replace(self, steps=tuple(steps))

    def indices(self, kind: str) -> list[int]:
        """Where the steps with actions of one kind are."""
        return [number for number, step in enumerate(self.steps) if step.action.kind == kind]

    def stopped(self) -> LockWork:
        """As it is left: no step is under way any more, and none will be."""
        steps = tuple(
            msgspec.structs.replace(step, state="left", progress=None)
            if step.state in ("waiting", "running")
            else step
            for step in self.steps
        )
        return msgspec.structs.replace(self, steps=steps)

    @property
    def ended(self) -> int:
        """How many steps are over, well or not."""
        return sum(step.state not in ("waiting", "running") for step in self.steps)

    @property
    def running(self) -> str:
        """The first step that is under way, `install org/name@main`; empty when none is."""
        actions = (step.action for step in self.steps if step.state == "running")
        return next((f"{one.kind} {one.model_id}@{one.version}" for one in actions), "")

    @property
    def failed(self) -> list[Step]:
        """The steps that have failed so far."""
        return [step for step in self.steps if step.state == "failed"]


def _asked(work: LockWork) -> tuple[Any, ...]:
    return (work.lock_id, work.lock_version, work.frozen, work.prune)
