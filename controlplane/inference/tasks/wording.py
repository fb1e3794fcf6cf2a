"""How one model is asked: with its task's words, or with its tensors' names. Rules only."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

from controlplane.errors import NoRestInference
from controlplane.inference.tasks import TASKS, generic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from controlplane.inference.tasks.media import MediaRules
    from controlplane.inference.tasks.plan import Outputs, Plan
    from controlplane.inference.tasks.task import Answer, Event, Task
    from controlplane.registry.model_form import ModelForm

_COUNTS = ("prompt_tokens", "completion_tokens")


class Wording(Protocol):
    """Between callers' words and a model's tensors.

    Attributes:
        streams: the model tells of its work before it has ended.
        streaming: parameters that make it do so.
    """

    streams: bool
    streaming: dict[str, Any]

    def check(self, input_data: Mapping[str, Any], parameters: Mapping[str, Any]) -> Plan:
        """Check a call.

        Raises:
            ValidationFailed, BatchSizeExceeded: naming the fields that break a rule.
        """
        ...

    def shape(self, responses: Sequence[Sequence[Outputs]], *, single: bool) -> Answer:
        """The call's `output_data`, of each item's responses.

        Raises:
            KeyError: an output that the answer is made of did not come.
            ValueError: what came is no answer.
        """
        ...

    def event(self, response: Outputs) -> Event | None:
        """What a response tells while the call runs."""
        ...


class TaskWording:
    """The words of a declared task."""

    def __init__(self, task: Task, form: ModelForm, rules: MediaRules) -> None:
        self.streams = task.event is not None and form.decoupled
        self.streaming = task.streaming
        self._task = task
        self._form = form
        self._rules = rules

    def check(self, input_data: Mapping[str, Any], parameters: Mapping[str, Any]) -> Plan:
        """As `Wording.check`."""
        return self._task.check(input_data, parameters, self._form, self._rules)

    def shape(self, responses: Sequence[Sequence[Outputs]], *, single: bool) -> Answer:
        """As `Wording.shape`."""
        if not all(responses):
            raise ValueError("it ended without an answer")
        merged = [functools.reduce(self._task.merge, item) for item in responses]
        return self._task.shape(merged, single=single)

    def event(self, response: Outputs) -> Event | None:
        """As `Wording.event`."""
        return self._task.event(response) if self._task.event is not None else None


class TensorWording:
    """The names of a model's own tensors."""

    def __init__(self, form: ModelForm) -> None:
        self.streams = form.decoupled
        self.streaming: dict[str, Any] = {}
        self._form = form

    def check(self, input_data: Mapping[str, Any], parameters: Mapping[str, Any]) -> Plan:
        """As `Wording.check`."""
        return generic.check(input_data, parameters, self._form)

    def shape(self, responses: Sequence[Sequence[Outputs]], *, single: bool) -> Answer:
        """As `Wording.shape`."""
        return generic.shape(responses, self._form, single=single)

    def event(self, response: Outputs) -> Event | None:
        """As `Wording.event`."""
        return generic.event(response, self._form)


def wording(model_id: str, task_name: str, form: ModelForm, rules: MediaRules) -> Wording:
    """How a model is asked.

    Raises:
        NoRestInference: it cannot be, in JSON.
    """
    task = TASKS.get(task_name)
    if task is not None:
        return TaskWording(task, form, rules)
    if not generic.askable(form):
        raise NoRestInference(model_id, task_name)
    return TensorWording(form)


def usage(responses: Sequence[Sequence[Outputs]]) -> dict[str, int] | None:
    """Tokens counted by the model, over all items; None where it counts none."""
    last: list[Outputs] = [{k: v for one in item for k, v in one.items()} for item in responses]
    if not any(name in item for item in last for name in _COUNTS):
        return None
    sums = {name: sum(int(item[name][0]) for item in last if name in item) for name in _COUNTS}
    return {**sums, "total_tokens": sum(sums.values())}
