"""Routes on a model's versions: list, add, make current, remove, upgrade, pin.

A version's name may contain slashes, as branches do; it comes last in its path, plain or encoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from litestar import delete, get, post, put
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from controlplane.gateway.rest.model_schemas import ModelResponse
from controlplane.gateway.rest.models import model_name
from controlplane.gateway.rest.operation_schemas import OperationResponse
from controlplane.gateway.rest.responses import failures
from controlplane.gateway.rest.version_schemas import (
    AddVersionRequest,
    UpdateInfo,
    UpdateList,
    UpgradeAccepted,
    UpgradeRequest,
    VersionList,
    VersionResponse,
    VersionSwitched,
)
from controlplane.gateway.services import GivenServices
from controlplane.lifecycle.versions import remove_version, use_version
from controlplane.registry.catalog import pick
from controlplane.registry.remote_code import check_permitted
from controlplane.registry.upgrades import choose_upgrade, outdated

if TYPE_CHECKING:
    from controlplane.gateway.services import Services
    from controlplane.registry.model import Model, ModelVersion

TAGS = ["Versions"]
_MODELS = "/api/v1/models"
_MODEL = f"{_MODELS}/{{org:str}}/{{repo:str}}"
_ALL = f"{_MODEL}/versions"
_ONE = f"{_ALL}/{{version:path}}"


@get(
    _ALL,
    operation_id="listVersions",
    summary="List a model's versions",
    tags=TAGS,
    responses=failures(400, 404),
)
async def list_versions(
    org: FromPath[str], repo: FromPath[str], services: GivenServices
) -> VersionList:
    """All versions of a model, in the order of their registration."""
    model = services.store.get(model_name(org, repo))
    latest = model.latest
    listing = VersionList(
        model_id=model.model_id,
        current_version=model.current_version,
        pinned=model.pinned,
        data=[_render(services, model, version) for version in model.versions],
    )
    if latest is not None:
        listing.latest = latest.version
    return listing


@post(
    _ALL,
    status_code=201,
    operation_id="addVersion",
    summary="Register a version",
    tags=TAGS,
    responses=failures(400, 404, 409, 413, 415),
)
async def add_version(
    org: FromPath[str],
    repo: FromPath[str],
    data: JSONBody[AddVersionRequest],
    services: GivenServices,
) -> VersionResponse:
    """Enter a further version of a model. Nothing is downloaded, the current one stays."""
    allowed = services.settings.allow_remote_code
    check_permitted(f"{org}/{repo}", trusted=data.trust_remote_code, allowed=allowed)
    added = services.store.add_version(model_name(org, repo), data.version, **data.fields())
    return _render(services, services.store.get(added.model_id), added)


@get(
    _ONE,
    operation_id="getVersion",
    summary="Read a version",
    tags=TAGS,
    responses=failures(400, 404),
)
async def get_version(
    org: FromPath[str], repo: FromPath[str], version: FromPath[str], services: GivenServices
) -> VersionResponse:
    """One version, by its name or Triton number; `latest` is the newest that is ready."""
    model = services.store.get(model_name(org, repo))
    return _render(services, model, pick(model, version.strip("/")))


@post(
    _ONE,
    status_code=200,
    operation_id="useVersion",
    summary="Make a version current",
    tags=TAGS,
    responses=failures(400, 404, 409, 500, 503, 504),
)
async def use(
    org: FromPath[str], repo: FromPath[str], version: FromPath[str], services: GivenServices
) -> VersionSwitched:
    """Serve this version by default. A loaded model is switched over without losing a request;
    the answer comes when the old version has left memory."""
    switched = await use_version(
        services.store,
        services.scheduler,
        model_name(org, repo),
        version.strip("/"),
        load_timeout=services.settings.load_timeout,
    )
    return VersionSwitched.of(switched)


@delete(
    _ONE,
    status_code=204,
    operation_id="removeVersion",
    summary="Remove a version",
    tags=TAGS,
    responses=failures(400, 404, 409),
)
async def remove(
    org: FromPath[str], repo: FromPath[str], version: FromPath[str], services: GivenServices
) -> None:
    """Remove a version with its files, draining and unloading it first; never the current one."""
    await remove_version(
        services.store,
        services.installer,
        services.scheduler,
        model_name(org, repo),
        version.strip("/"),
    )


@get(
    f"{_MODELS}/outdated",
    operation_id="listOutdated",
    summary="Compare models with the hub",
    tags=TAGS,
    responses=failures(400, 404),
)
async def list_outdated(
    services: GivenServices,
    model_id: Annotated[str | None, QueryParameter(description="Only this model.")] = None,
) -> UpdateList:
    """Which branches moved on the hub and which newer tags exist. Models from elsewhere are left
    out; one whose repository cannot be asked says why."""
    found = await outdated(services.store, model_id)
    return UpdateList(data=[UpdateInfo.of(update) for update in found])


@post(
    f"{_MODEL}/upgrade",
    status_code=202,
    operation_id="upgradeModel",
    summary="Install a newer version",
    tags=TAGS,
    responses=failures(400, 404, 409, 415),
)
async def upgrade(
    org: FromPath[str],
    repo: FromPath[str],
    services: GivenServices,
    data: JSONBody[UpgradeRequest | None] = None,
) -> UpgradeAccepted:
    """Find what is newer, register it beside the others and start its installation. Make it
    current when it is ready."""
    store = services.store
    previous = store.get(model_name(org, repo))
    chosen = await choose_upgrade(store, previous.model_id, data.version if data else None)
    target = chosen or previous.current
    operation: OperationResponse | UnsetType = UNSET
    if chosen is not None:
        begun = services.installer.install(previous.model_id, chosen.version)
        operation = OperationResponse.of(begun)
    return UpgradeAccepted(
        model_id=previous.model_id,
        version=target.version,
        previous_version=previous.current_version,
        status=store.version(previous.model_id, target.version).status.value,
        up_to_date=target.version == previous.current_version,
        operation=operation,
    )


@put(
    f"{_MODEL}/pin",
    operation_id="pinModel",
    summary="Pin a model",
    tags=TAGS,
    responses=failures(400, 404),
)
async def pin(org: FromPath[str], repo: FromPath[str], services: GivenServices) -> ModelResponse:
    """Have upgrades refused until the model is unpinned."""
    return ModelResponse.of(services.store.set_pinned(model_name(org, repo), pinned=True))


@delete(
    f"{_MODEL}/pin",
    status_code=200,
    operation_id="unpinModel",
    summary="Unpin a model",
    tags=TAGS,
    responses=failures(400, 404),
)
async def unpin(org: FromPath[str], repo: FromPath[str], services: GivenServices) -> ModelResponse:
    """Allow upgrades again."""
    return ModelResponse.of(services.store.set_pinned(model_name(org, repo), pinned=False))


ROUTES = [
    list_versions,
    add_version,
    get_version,
    use,
    remove,
    list_outdated,
    upgrade,
    pin,
    unpin,
]


def _render(services: Services, model: Model, version: ModelVersion) -> VersionResponse:
    return VersionResponse.of(model, version, services.scheduler.view(model.model_id))
