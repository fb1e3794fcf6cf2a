"""JSON schemas of tasks (domain §2.7, get_input_schema and get_output_schema). Rules only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.inference.tasks import TASKS
from controlplane.inference.tasks.answers import arrays, objects

if TYPE_CHECKING:
    from controlplane.inference.tasks.task import Task
    from controlplane.registry.model_form import ModelForm, TensorForm

Schema = dict[str, Any]
_BASE64 = objects({"base64": {"type": "string", "contentEncoding": "base64"}})
_BYTES: Schema = {"oneOf": [{"type": "string"}, _BASE64]}


def input_schema(task_name: str, form: ModelForm) -> Schema:
    """JSON schema of `input_data`."""
    task = TASKS.get(task_name)
    if task is not None:
        return task_input(task)
    schema = objects(
        {tensor.name: _tensor(tensor) for tensor in form.inputs},
        optional=tuple(tensor.name for tensor in form.inputs if tensor.optional),
    )
    return {**schema, "additionalProperties": False}


def parameters_schema(task_name: str) -> Schema:
    """JSON schema of `parameters`; of models without a task of ours, whatever Triton carries."""
    task = TASKS.get(task_name)
    if task is not None:
        return task_parameters(task)
    return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


def output_schema(task_name: str, form: ModelForm) -> Schema:
    """JSON schema of `output_data`."""
    task = TASKS.get(task_name)
    if task is not None:
        return task_output(task)
    one = objects({tensor.name: _tensor(tensor) for tensor in form.outputs})
    if form.decoupled:
        one = objects({"responses": arrays(one)})
    return {"oneOf": [one, objects({"results": arrays(one)})]}


def task_input(task: Task) -> Schema:
    """`input_data` of a declared task; options may stand there too, aliases are left out."""
    properties = {field.name: field.schema(task.max_items) for field in task.inputs}
    schema: Schema = {"type": "object", "properties": properties, "description": task.about}
    required = [group[0] for group in task.needs if len(group) == 1]
    if required:
        schema["required"] = required
    either = [group for group in task.needs if len(group) > 1]
    if either:
        schema["oneOf"] = [{"required": [name]} for name in either[0]]
    return schema


def task_parameters(task: Task) -> Schema:
    """`parameters` of a declared task."""
    properties = {option.name: option.schema() for option in task.options}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def task_output(task: Task) -> Schema:
    """`output_data` of a declared task: of one item, or of lists."""
    many = task.results or objects({"results": arrays(task.result)})
    return {"oneOf": [task.result, many]}


def _tensor(tensor: TensorForm) -> Schema:
    """A value that has the tensor's shape, or stands plainly for its only element."""
    element = _element(tensor.datatype)
    schema = element
    for size in reversed(tensor.shape):
        schema = arrays(schema) | ({"minItems": size, "maxItems": size} if size >= 0 else {})
    plain = bool(tensor.shape) and all(size in (1, -1) for size in tensor.shape)
    both: Schema = {"oneOf": [element, schema]} if plain else schema
    return {**both, "description": f"{tensor.datatype} {list(tensor.shape)}"}


def _element(datatype: str) -> Schema:
    if datatype == "BYTES":
        return _BYTES
    if datatype == "BOOL":
        return {"type": "boolean"}
    return {"type": "number" if datatype.startswith("FP") else "integer"}
