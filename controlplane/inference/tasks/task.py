"""What a task is to REST: its fields and options, its answer, its events (domain §4.6). Rules only.

A task is declared once, as a `Task`; the checks of calls, the JSON schemas and the documentation
all read that declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import BatchSizeExceeded, ValidationFailed
from controlplane.inference.tasks.inputs import Contents, Input
from controlplane.inference.tasks.long_text import plain
from controlplane.inference.tasks.options import Option
from controlplane.inference.tasks.plan import Faults, Item, Outputs, Place, Plan, TensorValue

if TYPE_CHECKING:
    from controlplane.inference.tasks.media import MediaRules
    from controlplane.registry.model_form import ModelForm

MAX_ITEMS = 1024
# Of tasks that take seconds per item.
MAX_SLOW_ITEMS = 64

Answer = dict[str, Any]
# Values with the paths where callers wrote them, by the declared names.
Given = dict[str, tuple[Any, str]]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a streaming call tells before its end: `delta`, `progress`, `response`."""

    name: str
    data: dict[str, Any]


def last_values(before: Outputs, response: Outputs) -> Outputs:
    """Several responses as one answer: of each output the last one."""
    return {**before, **response}


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A call and its answer, for the documents; tests hold them against the code."""

    input_data: dict[str, Any]
    parameters: dict[str, Any] = {}
    output_data: dict[str, Any]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """The declaration of a task.

    Attributes:
        about: one sentence.
        inputs: fields of `input_data`.
        needs: of each group of inputs exactly one is to be given; others are optional.
        excludes: of each group of inputs at most one may be given.
        needs_tensor: fields by the tensor that every item must have, whichever field brings it.
        options: they may stand in `parameters` or in `input_data` (domain C-19).
        outputs: tensors that the answer is made of.
        answer: an item's answer, of its outputs.
        answers: the answer to lists, of all items' answers.
        merge: several responses to one item, put together.
        event: what a response tells while the call runs; None for tasks that do not stream.
        streaming: parameters that make the model stream.
        result: JSON schema of one item's answer.
    """

    name: str
    about: str
    inputs: tuple[Input, ...]
    needs: tuple[tuple[str, ...], ...]
    options: tuple[Option, ...] = ()
    outputs: tuple[str, ...]
    answer: Callable[[Outputs], Answer]
    result: dict[str, Any]
    example: Example
    excludes: tuple[tuple[str, ...], ...] = ()
    needs_tensor: dict[str, str] = {}
    answers: Callable[[Sequence[Answer]], Answer] | None = None
    results: dict[str, Any] | None = None
    merge: Callable[[Outputs, Outputs], Outputs] = last_values
    event: Callable[[Outputs], Event | None] | None = None
    streaming: dict[str, Any] = {}
    max_items: int = MAX_ITEMS

    def check(
        self,
        input_data: Mapping[str, Any],
        parameters: Mapping[str, Any],
        form: ModelForm,
        rules: MediaRules,
    ) -> Plan:
        """Check a call against the declaration.

        Raises:
            ValidationFailed: naming every field that breaks a rule.
            BatchSizeExceeded: more than `max_items` items.
        """
        return _Check(self, form, rules).plan(input_data, parameters)

    def shape(self, outputs: Sequence[Outputs], *, single: bool) -> Answer:
        """The call's `output_data`, of each item's outputs."""
        answers = [self.answer(found) for found in outputs]
        if single:
            return answers[0]
        return self.answers(answers) if self.answers is not None else {"results": answers}


class _Check:
    """One call on its way to a plan; collects faults."""

    def __init__(self, task: Task, form: ModelForm, rules: MediaRules) -> None:
        self._task = task
        self._form = form
        self._rules = rules
        self._faults: Faults = {}
        self._long = {field.name for field in task.inputs if field.takes_long}

    def plan(self, input_data: Mapping[str, Any], parameters: Mapping[str, Any]) -> Plan:
        given = self._sorted_out(input_data, parameters)
        places = self._places(given)
        options = {
            option.name: option.read(*given.pop(option.name), self._faults)
            for option in self._task.options
            if option.name in given
        }
        self._check_needs(given)
        single, items = self._items(given)
        if self._faults:
            raise ValidationFailed(self._faults)
        return Plan(
            items=items,
            single=single,
            parameters=options,
            outputs=_wanted(self._task, self._form),
            places=places,
        )

    def _places(self, given: Given) -> dict[str, Place]:
        places = {
            field.tensor: Place(
                path=given[field.name][1], listed=field.is_batch(given[field.name][0])
            )
            for field in self._task.inputs
            if field.name in given
        }
        options = (option.name for option in self._task.options if option.name in given)
        return places | {name: Place(path=given[name][1]) for name in options}

    def _sorted_out(self, input_data: Mapping[str, Any], parameters: Mapping[str, Any]) -> Given:
        """Values and their paths by the declared names; `parameters` wins over `input_data`."""
        known: Given = {}
        names = self._names()
        for place, values in (("parameters", parameters), ("input_data", input_data)):
            for name, value in values.items():
                path = f"{place}.{name}"
                if name == "task_type":
                    self._check_task(value, path)
                elif name not in names:
                    self._faults[path] = [f"is not a field of {self._task.name} ({self._listed()})"]
                elif value is not None:  # null is as if it were not there (domain §1.6)
                    read = value if names[name] in self._long else plain(value)
                    self._take(known, names[name], read, path)
        return known

    def _take(self, known: Given, name: str, value: Any, path: str) -> None:
        before = known.setdefault(name, (value, path))[1]
        # the same word in both mappings is no contradiction: `parameters` wins
        if before.rpartition(".")[2] != path.rpartition(".")[2]:
            self._faults[path] = [f"means the same as {before}: give one of them"]

    def _names(self) -> dict[str, str]:
        return {
            name: field.name for field in self._fields() for name in (field.name, *field.aliases)
        }

    def _fields(self) -> Iterator[Input | Option]:
        yield from self._task.inputs
        yield from self._task.options

    def _listed(self) -> str:
        return ", ".join(field.name for field in self._fields())

    def _check_task(self, value: Any, path: str) -> None:
        if value != self._task.name:
            self._faults[path] = [f"must be {self._task.name}, the task of this model"]

    def _check_needs(self, given: Given) -> None:
        for group in (*self._task.needs, *self._task.excludes):
            there = [name for name in group if name in given]
            wanted = " or ".join(group)
            if len(there) > 1:
                self._faults[given[there[-1]][1]] = [f"give one of {wanted}, not both"]
            elif not there and group in self._task.needs:
                more = f": give {wanted}" if len(group) > 1 else ""
                self._faults[f"input_data.{group[0]}"] = [f"is required{more}"]

    def _items(self, given: Given) -> tuple[bool, tuple[Item, ...]]:
        """Whether it is a single item, and the items; a single value goes with each of a list."""
        inputs = [field for field in self._task.inputs if field.name in given]
        lengths = {}
        for field in inputs:
            value, path = given[field.name]
            if field.is_batch(value):
                lengths[path] = len(value)
                if len(value) > self._task.max_items:
                    raise BatchSizeExceeded(path, len(value), self._task.max_items)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            self._faults[next(reversed(lengths))] = [f"lists must be equally long: {listed}"]
            return False, ()
        count = next(iter(lengths.values()), 1)
        read = [self._read(field, *given[field.name], count) for field in inputs]
        rows = zip(*read, strict=True) if read else ()
        return not lengths, tuple(self._item(row) for row in rows)

    def _item(self, contents: tuple[Contents, ...]) -> Item:
        item: Item = {}
        for one in contents:
            for tensor, content in one.items():
                if tensor in item:
                    self._faults[f"input_data.{self._field(tensor)}"] = ["is given twice"]
                item[tensor] = TensorValue.of_bytes(content)
        for tensor, field in self._task.needs_tensor.items():
            if tensor not in item:
                self._faults[f"input_data.{field}"] = ["is required"]
        return item

    def _field(self, tensor: str) -> str:
        return next(field.name for field in self._task.inputs if field.tensor == tensor)

    def _read(self, field: Input, value: Any, path: str, count: int) -> list[Contents]:
        names = [tensor.name for tensor in self._form.inputs]
        if names and field.tensor not in names:
            self._faults[path] = [f"this model takes no {field.name}"]
            return [{}] * count
        if not field.is_batch(value):
            return [field.read(value, path, self._rules, self._faults)] * count
        return [
            field.read(one, f"{path}[{i}]", self._rules, self._faults)
            for i, one in enumerate(value)
        ]


def _wanted(task: Task, form: ModelForm) -> tuple[str, ...]:
    """The task's outputs that the model has."""
    names = {tensor.name for tensor in form.outputs}
    return tuple(name for name in task.outputs if not names or name in names)
