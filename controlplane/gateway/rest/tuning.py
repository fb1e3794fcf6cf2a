"""POST /api/v1/models/{org}/{repo}/tune: measure engines again."""

from __future__ import annotations

from litestar import Response, post
from litestar.params import FromPath, JSONBody

from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.operation_schemas import OperationResponse
from controlplane.gateway.rest.operations import accepted
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import EngineName, PrecisionName, Request, Version
from controlplane.gateway.services import GivenServices
from controlplane.registry.engine_choice import parse_choice


class TuneRequest(Request):
    """What is left out is measured."""

    version: Version | None = None
    engine: EngineName | None = None
    precision: PrecisionName | None = None


@post(
    "/api/v1/models/{org:str}/{repo:str}/tune",
    status_code=202,
    operation_id="tuneModel",
    summary="Measure a model's engines again",
    tags=["models"],
    responses=failures(400, 404, 409, 415),
)
async def tune_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    data: JSONBody[TuneRequest | None] = None,
) -> Response[OperationResponse]:
    """Measure on this machine what serves a ready version fastest, or take what is named, and put
    it in place of what it has; it is served meanwhile, and loaded anew where it is in memory. The
    answer is the operation to watch it by."""
    wanted = data or TuneRequest()
    choice = parse_choice(wanted.engine, wanted.precision)
    name = model_name(org, repo)
    return accepted(services.installer.tune(name, wanted.version, choice))
