"""The routes that run a model, and that tell how it is asked."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from controlplane.gateway.rest.event_messages import event_stream
from controlplane.gateway.rest.infer_schemas import (
    InferenceRequest,
    InferenceResponse,
    TaskSchema,
)
from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.task_schemas import schema_of
from controlplane.gateway.services import GivenServices
from controlplane.inference.infer import InferRequest
from controlplane.registry.catalog import pick

EVENTS = "text/event-stream"


@post(
    "/api/v1/infer/{org:str}/{repo:str}",
    status_code=200,
    operation_id="infer",
    summary="Run a model",
    tags=["Inference"],
    responses={
        200: ResponseSpec(InferenceResponse, description="The answer.", generate_examples=False),
        **failures(400, 404, 409, 413, 415, 500, 503, 504),
    },
)
async def infer(
    org: FromPath[str],
    repo: FromPath[str],
    data: JSONBody[InferenceRequest],
    services: GivenServices,
    accept: Annotated[
        str | None,
        HeaderParameter(name="Accept", description="text/event-stream is as `stream: true`."),
    ] = None,
) -> Response[InferenceResponse] | Stream:
    """Run a model on the input and wait for the answer; loads the model if it is not loaded.

    With `stream` the answer is server-sent events: `delta` {text} for each piece of a text,
    `progress` {step, steps} for each step of an image, `response` for each response of a model
    with tensors of its own, and at last `done` with the whole answer, or `error` with the error's
    envelope. Tasks that tell nothing before they end send `done` only. What goes wrong before the
    first event is an HTTP status as ever.
    """
    request = InferRequest(
        input_data=data.input_data,
        parameters=data.parameters,
        priority=data.priority,
        timeout_seconds=data.timeout_seconds,
    )
    name = model_name(org, repo)
    if data.stream or (accept is not None and accept.lower().startswith(EVENTS)):
        return await event_stream(services.inference.stream(name, data.version, request), name)
    return Response(
        InferenceResponse.of(await services.inference.infer(name, data.version, request))
    )


@get(
    "/api/v1/models/{org:str}/{repo:str}/schema",
    operation_id="getModelSchema",
    summary="Read how a model is asked",
    tags=["Inference"],
    responses=failures(400, 404, 409),
)
async def get_schema(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    version: Annotated[
        str | None, QueryParameter(description="Of this version; else of the current one.")
    ] = None,
) -> TaskSchema:
    """JSON schemas of `input_data`, `parameters` and `output_data`, and an example.

    Of a model whose task has no words of ours (ready-made models, plugins' tasks) the fields are
    its tensors, by name.
    """
    model = services.store.get(model_name(org, repo))
    return schema_of(model, pick(model, version))


ROUTES = [infer, get_schema]
