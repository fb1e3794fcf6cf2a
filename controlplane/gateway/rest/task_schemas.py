"""The schemas of tasks for REST: of one model, and of all in the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from controlplane.gateway.rest.infer_schemas import TaskSchema
from controlplane.inference.tasks import TASKS, schemas
from controlplane.registry.model_form import ModelForm

if TYPE_CHECKING:
    from controlplane.inference.tasks.task import Task
    from controlplane.registry.model import Model, ModelVersion

_INFER = "/api/v1/infer/{org}/{repo}"
_EVENTS = (
    "Server-sent events, when `stream` or the Accept header asks for them: `delta`, `progress` or "
    "`response` while the model works, then `done` with the answer, or `error`."
)
_TIMES = {"inference_time_ms": 12.5, "total_time_ms": 13.0, "batch_size": 1, "device": "cpu"}


def schema_of(model: Model, version: ModelVersion) -> TaskSchema:
    """How one version of a model is asked."""
    name, form = str(model.task_type), ModelForm.of(version.artefact)
    task = TASKS.get(name)
    declared = task is not None and task.event is not None
    return TaskSchema(
        model_id=model.model_id,
        version=version.version,
        task_type=name,
        streams=form.decoupled and (declared or task is None),
        input_data=schemas.input_schema(name, form),
        parameters=schemas.parameters_schema(name),
        output_data=schemas.output_schema(name, form),
        example=UNSET if task is None else request_example(task),
    )


def request_example(task: Task) -> dict[str, Any]:
    """A request's body."""
    example = task.example
    more = {"parameters": example.parameters} if example.parameters else {}
    return {"input_data": example.input_data, **more}


def answer_example(task: Task) -> dict[str, Any]:
    """That request's answer."""
    return {
        "model_id": f"org/{task.name}",
        "version": "main",
        "output_data": task.example.output_data,
        "metadata": _TIMES,
    }


def describe_tasks(document: dict[str, Any]) -> None:
    """Put every task's request and answer into the OpenAPI document, in place."""
    components = document["components"]["schemas"]
    infer = document["paths"][_INFER]["post"]
    body = infer["requestBody"]["content"]["application/json"]
    answer = infer["responses"]["200"]["content"]
    general = {"request": _without_title(body["schema"]), "answer": _reference("InferenceResponse")}
    for task in TASKS.values():
        components[f"{task.name}.request"] = _all_of(
            general["request"],
            {
                "input_data": schemas.task_input(task),
                "parameters": schemas.task_parameters(task),
            },
        )
        components[f"{task.name}.response"] = _all_of(
            general["answer"], {"output_data": schemas.task_output(task)}
        )
    body["schema"] = _any_of("request", general["request"])
    body["examples"] = _examples(request_example)
    answer["application/json"] = {
        "schema": _any_of("response", general["answer"]),
        "examples": _examples(answer_example),
    }
    answer["text/event-stream"] = {"schema": {"type": "string", "description": _EVENTS}}


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key == "$ref"} or schema


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _all_of(general: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"allOf": [general, {"type": "object", "properties": properties}]}


def _any_of(kind: str, general: dict[str, Any]) -> dict[str, Any]:
    """Not `oneOf`: a text fits several tasks, and the model's own task decides."""
    each = [_reference(f"{name}.{kind}") for name in TASKS]
    return {"anyOf": [*each, general]}


def _examples(example: Any) -> dict[str, Any]:
    return {
        task.name: {"summary": f"{task.name}: {task.about}", "value": example(task)}
        for task in TASKS.values()
    }
