"""Routes of the catalog: register, list, read, change, delete, download."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, post, put
from litestar.params import FromPath, JSONBody, QueryParameter

from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.schemas import (
    DownloadAccepted,
    DownloadRequest,
    ModelPage,
    ModelResponse,
    Pagination,
    RegisterModelRequest,
    UpdateModelRequest,
)
from controlplane.gateway.services import GivenServices, Services
from controlplane.gateway.trace import name_model
from controlplane.lifecycle.removal import remove_model
from controlplane.registry.catalog import pick
from controlplane.registry.model import Model, ModelId
from controlplane.registry.upgrades import ensure_version

TAGS = ["Models"]
_PATH = "/api/v1/models"
_ONE = f"{_PATH}/{{org:str}}/{{repo:str}}"


@post(
    _PATH,
    status_code=201,
    operation_id="registerModel",
    summary="Register a model",
    tags=TAGS,
    responses=failures(400, 409, 413, 415),
)
async def register_model(
    data: JSONBody[RegisterModelRequest], services: GivenServices
) -> ModelResponse:
    """Enter a model in the catalog. Nothing is downloaded yet."""
    model = services.store.register(data.to_domain())
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
        pagination=Pagination(
            page=found.page,
            page_size=found.page_size,
            total_items=found.total_items,
            total_pages=found.total_pages,
        ),
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
    version: Annotated[
        str | None, QueryParameter(description="Tell of this version, not of the current one.")
    ] = None,
) -> ModelResponse:
    """One model, with the progress of its installation while that runs."""
    model = services.store.get(model_name(org, repo))
    if version is None:
        return _render(services, model)
    shown = pick(model, version)
    progress = services.installer.progress(model.model_id, shown.version)
    return ModelResponse.of(model, progress, shown)


@put(
    _ONE,
    operation_id="updateModel",
    summary="Change a model",
    tags=TAGS,
    responses=failures(400, 404, 409, 413, 415),
)
async def update_model(
    org: FromPath[str],
    repo: FromPath[str],
    data: JSONBody[UpdateModelRequest],
    services: GivenServices,
) -> ModelResponse:
    """Change descriptive fields; fields left out stay as they are."""
    number = data.version_number
    model = services.store.update(
        model_name(org, repo),
        data.to_domain(),
        expected_version=number if isinstance(number, int) else None,
    )
    return _render(services, model)


@delete(
    _ONE,
    status_code=204,
    operation_id="deleteModel",
    summary="Delete a model",
    tags=TAGS,
    responses=failures(400, 404, 409),
)
async def delete_model(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    force: Annotated[bool, QueryParameter(description="Unload it first if it is loaded.")] = False,
) -> None:
    """Remove a model with its files; a running installation is cancelled."""
    await remove_model(
        services.store,
        services.installer,
        services.scheduler,
        model_name(org, repo),
        force=force,
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
) -> DownloadAccepted:
    """Start the installation; it runs on after this answer. Read the model to see how far it is.

    A version that is not registered is added beside the others; the current one stays."""
    name = model_name(org, repo)
    wanted = data.version if data else None
    if wanted is not None:
        wanted = ensure_version(services.store, name, wanted).version
    model = services.installer.request(name, wanted)
    version = pick(model, wanted)
    ready = version.status == "ready"
    return DownloadAccepted(
        model_id=model.model_id,
        version=version.version,
        status=str(version.status),
        message="It is installed already." if ready else "The installation runs.",
    )


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


def _render(services: Services, model: Model) -> ModelResponse:
    return ModelResponse.of(model, services.installer.progress(model.model_id))


def _bare(name: str) -> Exception:
    try:
        ModelId.parse(name)
    except Exception as error:  # noqa: BLE001 handed on to be raised
        return error
    raise AssertionError(name)
