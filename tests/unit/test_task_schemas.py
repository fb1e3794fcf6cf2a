"""What the documents say of tasks is what the code does."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from controlplane.gateway.rest.docs import openapi_document
from controlplane.gateway.rest.infer_schemas import InferenceRequest, InferenceResponse
from controlplane.gateway.rest.requests import decode
from controlplane.inference.tasks import TASKS, schemas
from controlplane.inference.tasks.media import MediaRules
from controlplane.inference.tasks.wording import wording
from controlplane.registry.model_form import ModelForm
from tests import task_models

DOCUMENT: dict[str, Any] = json.loads(openapi_document("1.2.3"))
INFER = DOCUMENT["paths"]["/api/v1/infer/{org}/{repo}"]["post"]
BODY = INFER["requestBody"]["content"]["application/json"]
ANSWER = INFER["responses"]["200"]["content"]["application/json"]


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON schema that our documents use."""
    if "$ref" in schema:
        return fits(value, DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "oneOf" in schema and "properties" not in schema:
        return sum(fits(value, one) for one in schema["oneOf"]) == 1
    if "allOf" in schema:
        return all(fits(value, one) for one in schema["allOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kind = schema.get("type")
    if kind == "object":
        return isinstance(value, dict) and _properties_fit(value, schema)
    if kind == "array":
        return isinstance(value, list) and all(fits(one, schema["items"]) for one in value)
    kinds: dict[Any, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    return isinstance(value, kinds[kind]) and value >= schema.get("minimum", value)


def _properties_fit(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    known = schema.get("properties", {})
    if not all(name in value for name in schema.get("required", ())):
        return False
    if schema.get("additionalProperties") is False and not set(value) <= set(known):
        return False
    if "oneOf" in schema and sum(_properties_fit(value, one) for one in schema["oneOf"]) != 1:
        return False
    return all(fits(value[name], one) for name, one in known.items() if name in value)


@pytest.mark.parametrize("task", TASKS)
def test_the_documented_request_is_taken(task: str) -> None:
    body = BODY["examples"][task]["value"]
    request = decode(json.dumps(body).encode(), InferenceRequest)
    words = wording("org/m", task, ModelForm(), MediaRules())
    plan = words.check(request.input_data, request.parameters)
    assert plan.single
    assert set(plan.parameters) == set(body.get("parameters", {}))
    assert fits(body, {"$ref": f"#/components/schemas/{task}.request"})


@pytest.mark.parametrize("task", TASKS)
def test_the_documented_answer_is_what_the_code_gives(task: str) -> None:
    body = ANSWER["examples"][task]["value"]
    assert decode(json.dumps(body).encode(), InferenceResponse).output_data == body["output_data"]
    assert fits(body, {"$ref": f"#/components/schemas/{task}.response"})
    outputs = _outputs(task, body["output_data"])
    words = wording("org/m", task, ModelForm(), MediaRules())
    assert words.shape([[outputs]], single=True) == body["output_data"]
    many = words.shape([[outputs], [outputs]], single=False)
    assert fits(many, schemas.output_schema(task, ModelForm()))


def _outputs(task: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The model's outputs that a documented answer tells of."""
    boxes = answer.get("objects", [])
    classes = [*answer.get("classes", ()), *boxes]
    segments = answer.get("segments", [])
    found: dict[str, Any] = {
        "embedding": answer.get("embedding"),
        "text_output": [answer.get("text", answer.get("answer", "")).encode()],
        "finish_reason": [answer.get("finish_reason", "").encode()],
        "prompt_tokens": [5],
        "completion_tokens": [answer.get("tokens_used", 5) - 5],
        "image_output": [base64.b64decode(answer.get("image", ""))],
        "audio_output": [base64.b64decode(answer.get("audio", ""))],
        "sample_rate": [answer.get("sample_rate")],
        "label": [one["label"].encode() for one in classes],
        "score": [one["score"] for one in classes] or [answer.get("score")],
        "box": [list(one["box"].values()) for one in boxes],
        "segment_text": [one["text"].encode() for one in segments],
        "segment_start": [one["start"] for one in segments],
        "segment_end": [one["end"] for one in segments],
        "start": [answer.get("start")],
        "end": [answer.get("end")],
    }
    return {name: found[name] for name in TASKS[task].outputs if name in found}


def test_the_document_names_every_task() -> None:
    known = DOCUMENT["components"]["schemas"]
    for task in TASKS:
        for kind, place in (("request", BODY), ("response", ANSWER)):
            assert f"{task}.{kind}" in known
            reference = {"$ref": f"#/components/schemas/{task}.{kind}"}
            assert reference in place["schema"]["anyOf"]


def test_a_model_of_its_own_has_its_tensors_for_a_schema() -> None:
    form = ModelForm.of(task_models.manifest("own"))
    schema = schemas.input_schema("custom", form)
    assert schema["required"] == ["word"]
    for value, good in (
        ({"word": "a"}, True),
        ({"word": {"base64": "YQ=="}, "numbers": [[1], [2]]}, True),
        ({"numbers": [[1], [2]]}, False),
        ({"word": "a", "other": 1}, False),
        ({"word": 1}, False),
    ):
        assert fits(value, schema) is good
    output = schemas.output_schema("custom", form)
    assert fits({"shout": "A", "doubled": [[2], [4]]}, output)
    assert fits({"results": [{"shout": "A", "doubled": [[2], [4]]}]}, output)
    repeated = ModelForm(outputs=form.outputs, decoupled=True)
    assert fits({"responses": []}, schemas.output_schema("custom", repeated))
