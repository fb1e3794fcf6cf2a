"""Models without words of their own here: their tensors by name, as the manifest lists them.

Ready-made models and the tasks of plugins. A value is written as its tensor is shaped, or plainly
where that has one element; BYTES as text, or as {"base64": "…"}. Lists of such values are several
items, of a model that batches too. Outputs come back in the same way. Rules only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from controlplane.errors import BatchSizeExceeded, ValidationFailed
from controlplane.inference.tasks.answers import base64_text
from controlplane.inference.tasks.limits import MAX_FILE_BYTES
from controlplane.inference.tasks.long_text import plain
from controlplane.inference.tasks.media import from_base64
from controlplane.inference.tasks.options import is_unicode
from controlplane.inference.tasks.plan import Faults, Item, Outputs, Plan, TensorValue
from controlplane.inference.tasks.task import MAX_ITEMS, Answer, Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from controlplane.registry.model_form import ModelForm, TensorForm

_INTEGERS = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
_FLOATS = {"FP16": 65504.0, "FP32": 3.4028235e38, "FP64": 1.7976931348623157e308}
DATATYPES = frozenset({*_INTEGERS, *_FLOATS, "BOOL", "BYTES"})
# What Triton and its clients keep for themselves among the parameters of a request.
_RESERVED = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers"}
)


def askable(form: ModelForm) -> bool:
    """Whether a single request in JSON can be put to the model."""
    tensors = (*form.inputs, *form.outputs)
    known = all(tensor.datatype in DATATYPES for tensor in tensors)
    return bool(form.inputs and form.outputs) and known and not form.stateful


def check(input_data: Mapping[str, Any], parameters: Mapping[str, Any], form: ModelForm) -> Plan:
    """Check a call against the model's tensors.

    Raises:
        ValidationFailed: naming every field that breaks a rule.
        BatchSizeExceeded: more than `MAX_ITEMS` items.
    """
    faults: Faults = {}
    _check_parameters(parameters, faults)
    known = {tensor.name: tensor for tensor in form.inputs}
    for name in input_data:
        if name not in known:
            faults[f"input_data.{name}"] = [f"is not an input of this model ({', '.join(known)})"]
    found: dict[str, list[TensorValue]] = {}
    lists: dict[str, int] = {}
    for name, tensor in known.items():
        value, path = plain(input_data.get(name)), f"input_data.{name}"
        if value is None:
            if not tensor.optional:
                faults[path] = ["is required"]
            continue
        found[name], many = _read(tensor, value, path, faults)
        if many:
            lists[path] = len(found[name])
    if len(set(lists.values())) > 1:
        faults[next(reversed(lists))] = ["lists of items must be equally long"]
    if faults:
        raise ValidationFailed(faults)
    return Plan(
        items=_items(found, next(iter(lists.values()), 1)),
        single=not lists,
        parameters=dict(parameters),
        outputs=tuple(tensor.name for tensor in form.outputs),
    )


def answer(outputs: Outputs, form: ModelForm) -> Answer:
    """One response's outputs by name."""
    shapes = {tensor.name: tensor for tensor in form.outputs}
    return {name: _written(value, shapes.get(name)) for name, value in outputs.items()}


def shape(responses: Sequence[Sequence[Outputs]], form: ModelForm, *, single: bool) -> Answer:
    """The call's `output_data`, of each item's responses.

    One response is the answer itself; of decoupled models, which give any number of them, a list.
    """
    if form.decoupled:
        told = [{"responses": [answer(one, form) for one in item]} for item in responses]
    else:
        told = [answer(item[0], form) for item in responses]
    return told[0] if single else {"results": told}


def event(outputs: Outputs, form: ModelForm) -> Event:
    """A response of a decoupled model, as it comes."""
    return Event(name="response", data=answer(outputs, form))


def _items(found: Mapping[str, list[TensorValue]], count: int) -> tuple[Item, ...]:
    return tuple(
        {name: values[i if len(values) > 1 else 0] for name, values in found.items()}
        for i in range(count)
    )


def _check_parameters(parameters: Mapping[str, Any], faults: Faults) -> None:
    for name, value in parameters.items():
        path = f"parameters.{name}"
        if name in _RESERVED or name.startswith("triton_"):
            faults[path] = ["belongs to Triton; for priority and timeout see the fields beside it"]
        elif isinstance(value, int) and not isinstance(value, bool):
            if not -(2**63) <= value < 2**63:
                faults[path] = ["must fit 64 bits"]
        elif not isinstance(value, str | bool | float):
            faults[path] = ["must be a string, a number, true or false"]


def _read(
    tensor: TensorForm, value: Any, path: str, faults: Faults
) -> tuple[list[TensorValue], bool]:
    """The items' values, and whether a list of items was written."""
    one = _fit(tensor, value)
    if one is not None:
        return [_checked(tensor, one, path, faults)], False
    parts = [_fit(tensor, part) for part in value] if isinstance(value, list) else [None]
    if len(parts) > MAX_ITEMS:
        raise BatchSizeExceeded(path, len(parts), MAX_ITEMS)
    if None in parts:
        sizes = [size if size >= 0 else "any" for size in tensor.shape]
        faults[path] = [f"must have the shape {sizes}, or be a list of such values"]
        return [], False
    fitting = [part for part in parts if part is not None]
    return [_checked(tensor, part, f"{path}[{i}]", faults) for i, part in enumerate(fitting)], True


Fitted = tuple[tuple[int, ...], list[Any]]


def _fit(tensor: TensorForm, value: Any) -> Fitted | None:
    """Shape and flat elements of a value that has the tensor's shape; None for one that has not."""
    if not isinstance(value, list):
        plain = all(size in (1, -1) for size in tensor.shape)
        return ((1,) * len(tensor.shape), [value]) if plain else None
    flat, shape_of = [value], []
    for size in tensor.shape:
        if not all(isinstance(part, list) for part in flat):
            return None
        lengths = {len(part) for part in flat}
        length = lengths.pop() if len(lengths) == 1 else (0 if not lengths else -1)
        if length < 0 or (size >= 0 and length != size):
            return None
        shape_of.append(length)
        flat = [element for part in flat for element in part]
    return None if any(isinstance(part, list) for part in flat) else (tuple(shape_of), flat)


def _checked(tensor: TensorForm, fitted: Fitted, path: str, faults: Faults) -> TensorValue:
    shape_of, flat = fitted
    values = []
    for element in flat:
        try:
            values.append(_element(tensor.datatype, element))
        except ValueError as error:
            faults.setdefault(path, [str(error)])
    return TensorValue(datatype=tensor.datatype, shape=shape_of, values=tuple(values))


def _element(datatype: str, value: Any) -> Any:
    """One element.

    Raises:
        ValueError: saying what it must be.
    """
    if datatype == "BYTES":
        return _bytes(value)
    if datatype == "BOOL":
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number ({datatype})")  # noqa: TRY004 - of the caller's
    if datatype in _FLOATS:
        if not (math.isfinite(value) and abs(value) <= _FLOATS[datatype]):
            raise ValueError(f"must be a number that {datatype} can hold")
        return float(value)
    least, most = _INTEGERS[datatype]
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"must be a whole number ({datatype})")
    if not least <= value <= most:
        raise ValueError(f"must be from {least} to {most} ({datatype})")
    return int(value)


def _bytes(value: Any) -> bytes:
    if isinstance(value, dict) and set(value) == {"base64"} and isinstance(value["base64"], str):
        content = from_base64(value["base64"])
    elif isinstance(value, str):
        if not is_unicode(value):
            raise ValueError("holds half of a surrogate pair, which is not valid Unicode")
        content = value.encode()
    else:
        raise ValueError('must be a text or {"base64": "…"}')
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"must be at most {MAX_FILE_BYTES // 1_000_000} MB")
    return content


def _written(value: Any, tensor: TensorForm | None) -> Any:
    """Nested lists as JSON; what is declared to have one element stands plainly."""
    if tensor is not None and tensor.shape and all(size == 1 for size in tensor.shape):
        for _ in tensor.shape:
            value = value[0]
    return _json(value)


def _json(value: Any) -> Any:
    if isinstance(value, list):
        return [_json(part) for part in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64_text(value)}
