"""Routes of the catalog: register, list, read, change, delete, download."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, post, put
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter

from controlplane.gateway.rest.etags import etag, is_unchanged, require_match
from controlplane.gateway.rest.model_schemas import (
    DownloadRequest,
    ModelPage,
    ModelResponse,
    RegisterModelRequest,
    UpdateModelRequest,
)
from controlplane.gateway.rest.operation_schemas import OperationResponse
from controlplane.gateway.rest.operations import accepted
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import Pagination
from controlplane.gateway.services import GivenServices, Services
from controlplane.gateway.trace import name_model
from controlplane.lifecycle.removal import remove_model
from controlplane.registry.catalog import pick
from controlplane.registry.engine_choice import parse_choice
from controlplane.registry.model import Model, ModelId
from controlplane.registry.registration import PATIENCE, register
from controlplane.registry.remote_code import check_permitted
from controlplane.registry.upgrades import ensure_version

TAGS = ["Models"]
_PATH = "/api/v1/models"
_ONE = f"{_PATH}/{{org:str}}/{{repo:str}}"

IfMatch = Annotated[
    str | None,
    HeaderParameter(name="If-Match", description="Refuse (412) unless the model has this ETag."),
]
IfNoneMatch = Annotated[
    str | None,
    HeaderParameter(name="If-None-Match", description="Answer 304 if the model has this ETag."),
]


@post(
    _PATH,
    status_code=201,
    operation_id="registerModel",
    summary="Register a model",
    tags=TAGS,
    responses=failures(400, 409, 413, 415, 502, 503, 507),
)
async def register_model(
    data: JSONBody[RegisterModelRequest], services: GivenServices
) -> ModelResponse:
    """Enter a model in the catalog. Without a task its small files are looked at; for an archive,
    that takes its download, which the installation then uses. While that is not done the answer is
    503 SOURCE_BEING_READ with `Retry-After`: the same request, sent again, waits for the same
    download."""
    model = await register(services.installer.shop, data.to_domain(), patience=PATIENCE)
    name_model(model.model_id)
    return ModelResponse.of(model)


@get(
    _PATH,
    operation_id="listModels",
    summary="List models",
    tags=TAGS,
    responses=failures(400),
)
async def list_models(
    services: GivenServices,
    task_type: Annotated[str | None, QueryParameter(description="Only this task type.")] = None,
    status: Annotated[
        str | None, QueryParameter(description="Only models whose current version has this status.")
    ] = None,
    search_text: Annotated[str | None, QueryParameter(description="Part of the model id.")] = None,
    page: Annotated[int, QueryParameter(description="From 1.")] = 1,
    page_size: Annotated[int, QueryParameter(description="1 to 100.")] = 20,
) -> ModelPage:
    """A page of the catalog, by model id."""
    found = services.store.list(
        task_type=task_type,
        status=status,
        search_text=search_text,
        page=page,
        page_size=page_size,
    )
    return ModelPage(
        data=[_render(services, model) for model in found.items],
        pagination=Pagination.of(found),
    )


@get(
    _ONE,
    operation_id="getModel",
    summary="Read a model",
    tags=TAGS,
    responses=failures(400, 404),
)
async def get_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    if_none_match: IfNoneMatch = None,
    version: Annotated[
        str | None, QueryParameter(description="Tell of this version, not of the current one.")
    ] = None,
) -> Response[ModelResponse]:
    """One model, with the progress of its installation while that runs."""
    model = services.store.get(model_name(org, repo))
    if version is not None:
        shown = pick(model, version)
        progress = services.installer.progress(model.model_id, shown.version)
        return Response(ModelResponse.of(model, progress, shown))
    answer = _tagged(services, model)
    # Progress is no part of the tag: while there is some, the model is never "unchanged".
    progress = services.installer.progress(model.model_id)
    if progress is None and is_unchanged(if_none_match, model):
        return Response(None, status_code=304, headers=answer.headers)  # type: ignore[arg-type]
    return answer


@put(
    _ONE,
    operation_id="updateModel",
    summary="Change a model",
    tags=TAGS,
    responses=failures(400, 404, 409, 412, 413, 415),
)
async def update_model(
    org: FromPath[str],
    repo: FromPath[str],
    data: JSONBody[UpdateModelRequest],
    services: GivenServices,
    if_match: IfMatch = None,
) -> Response[ModelResponse]:
    """Change descriptive fields; fields left out stay as they are."""
    name, number = model_name(org, repo), data.version_number
    if if_match is not None:  # nothing is awaited between here and the change
        require_match(if_match, services.store.get(name))
    model = services.store.update(
        name,
        data.to_domain(),
        expected_version=number if isinstance(number, int) else None,
    )
    return _tagged(services, model)


@delete(
    _ONE,
    status_code=204,
    operation_id="deleteModel",
    summary="Delete a model",
    tags=TAGS,
    responses=failures(400, 404, 409, 412),
)
async def delete_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    force: Annotated[
        bool, QueryParameter(description="Unload it first if it is loaded, and do not mind locks.")
    ] = False,
    if_match: IfMatch = None,
) -> None:
    """Remove a model with its files; a running installation is cancelled."""
    name, expected = model_name(org, repo), None
    if if_match is not None:
        model = services.store.get(name)
        require_match(if_match, model)
        expected = model.version
    await remove_model(
        services.store,
        services.installer,
        services.scheduler,
        name,
        force=force,
        expected_version=expected,
    )


@post(
    f"{_ONE}/download",
    status_code=202,
    operation_id="downloadModel",
    summary="Download and convert a model",
    tags=TAGS,
    responses=failures(400, 404, 409, 415),
)
async def download_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    data: JSONBody[DownloadRequest | None] = None,
) -> Response[OperationResponse]:
    """Start the installation; it runs on after this answer, which is the operation to watch it by.

    When one runs for this version already, it is that one; when the version is installed, the
    operation that did it. A version that is not registered is added beside the others; the
    current one stays.
    """
    name = model_name(org, repo)
    wanted = data.version if data else None
    trusted = data is not None and data.trust_remote_code
    allowed = services.settings.allow_remote_code
    check_permitted(name, trusted=trusted, allowed=allowed)
    engine, precision = (data.engine, data.precision) if data else (None, None)
    choice = parse_choice(engine, precision)
    if wanted is None and (trusted or engine or precision):
        wanted = services.store.get(name).current_version
    if wanted is not None:
        wanted = ensure_version(
            services.store, name, wanted, trust_remote_code=trusted, engine_choice=choice
        ).version
        if engine or precision:
            services.installer.choose_engine(name, wanted, choice)
    return accepted(services.installer.install(name, wanted))


@get(
    f"{_PATH}/{{name:str}}",
    include_in_schema=False,
    operation_id="getModelByBareName",
)
async def get_bare(name: FromPath[str]) -> Response[None]:
    """A name without organization: say what a model id looks like, rather than "no such page"."""
    raise _bare(name)


@put(f"{_PATH}/{{name:str}}", include_in_schema=False, operation_id="putModelByBareName")
async def put_bare(name: FromPath[str]) -> Response[None]:
    """As `get_bare`."""
    raise _bare(name)


@delete(
    f"{_PATH}/{{name:str}}",
    status_code=200,
    include_in_schema=False,
    operation_id="deleteModelByBareName",
)
async def delete_bare(name: FromPath[str]) -> Response[None]:
    """As `get_bare`."""
    raise _bare(name)


ROUTES = [
    register_model,
    list_models,
    get_model,
    update_model,
    delete_model,
    download_model,
    get_bare,
    put_bare,
    delete_bare,
]


def model_name(org: str, repo: str) -> str:
    """The model id of a path, checked; the request's log lines carry it from now on.

    Raises:
        InvalidModelId: it cannot be one.
    """
    model_id = str(ModelId.parse(f"{org}/{repo}"))
    name_model(model_id)
    return model_id


def _tagged(services: Services, model: Model) -> Response[ModelResponse]:
    return Response(_render(services, model), headers={"ETag": etag(model)})


def _render(services: Services, model: Model) -> ModelResponse:
    return ModelResponse.of(model, services.installer.progress(model.model_id))


def _bare(name: str) -> Exception:
    try:
        ModelId.parse(name)
    except Exception as error:  # noqa: BLE001 handed on to be raised
        return error
    raise AssertionError(name)
