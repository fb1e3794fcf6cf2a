"""The route that runs a model and waits for the answer."""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.params import FromPath, JSONBody

from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import (
    InferenceMetadata,
    InferenceRequest,
    InferenceResponse,
)
from controlplane.gateway.services import GivenServices
from controlplane.inference.infer import InferRequest


@post(
    "/api/v1/infer/{org:str}/{repo:str}",
    status_code=200,
    operation_id="infer",
    summary="Run a model",
    tags=["Inference"],
    responses=failures(400, 404, 409, 413, 415, 500, 503, 504),
)
async def infer(
    org: FromPath[str],
    repo: FromPath[str],
    data: JSONBody[InferenceRequest],
    services: GivenServices,
) -> InferenceResponse:
    """Run a model on the input and wait for the answer; loads the model if it is not loaded."""
    request = InferRequest(
        input_data=data.input_data,
        parameters=data.parameters,
        priority=data.priority,
        timeout_seconds=data.timeout_seconds,
    )
    result = await services.inference.infer(model_name(org, repo), data.version, request)
    return InferenceResponse(
        model_id=result.model_id,
        version=result.version,
        output_data=result.output_data,
        metadata=msgspec.convert(result.metadata, InferenceMetadata, from_attributes=True),
    )


ROUTES = [infer]
