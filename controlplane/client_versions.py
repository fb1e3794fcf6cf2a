"""The client's operations on a model's versions; see `client_operations`."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from controlplane.client_background import await_installation
from controlplane.client_steps import Steps, ask, given, model_path
from controlplane.client_types import ModelInfo, ModelMoraApiError, OnProgress
from controlplane.client_version_types import (
    UpdateList,
    UpgradeAccepted,
    VersionInfo,
    VersionList,
    VersionSwitched,
)
from controlplane.registry.model import is_semantic, version_sort_key


def _version_path(model_id: str, version: str) -> str:
    # Encoded with its slashes: a name such as 'a/..' would address another endpoint.
    if not version or ".." in version:
        raise ModelMoraApiError(
            "VERSION_NOT_FOUND", f"{model_id} has no version {version!r}.", status=404
        )
    return model_path(model_id, f"/versions/{quote(version, safe='')}")


def versions(model_id: str) -> Steps[VersionList]:
    """All versions of a model, in the order of their registration."""
    return ask("GET", model_path(model_id, "/versions"), VersionList)


def version(model_id: str, version: str) -> Steps[VersionInfo]:
    """One version; `latest` is the newest that is ready."""
    return ask("GET", _version_path(model_id, version), VersionInfo)


def add_version(
    model_id: str,
    version: str,
    *,
    metadata: dict[str, Any] | None = None,
    resource_requirements: dict[str, Any] | None = None,
) -> Steps[VersionInfo]:
    """Register a further version without downloading it; the current one stays."""
    body = given(version=version, metadata=metadata, resource_requirements=resource_requirements)
    return ask("POST", model_path(model_id, "/versions"), VersionInfo, json=body)


def use(model_id: str, version: str) -> Steps[VersionSwitched]:
    """Serve an installed version by default; returns when the old one has left memory."""
    return ask("POST", _version_path(model_id, version), VersionSwitched, timeout=None)


def remove_version(model_id: str, version: str) -> Steps[None]:
    """Remove a version that is not the current one, with its files."""
    return ask("DELETE", _version_path(model_id, version), type(None), timeout=None)


def pin(model_id: str, version: str | None = None) -> Steps[ModelInfo]:
    """Have upgrades of a model refused; `version` is made current before."""
    if version is not None:
        yield from use(model_id, version)
    return (yield from ask("PUT", model_path(model_id, "/pin"), ModelInfo))


def unpin(model_id: str) -> Steps[ModelInfo]:
    """Allow upgrades of a model again."""
    return ask("DELETE", model_path(model_id, "/pin"), ModelInfo)


def outdated(model_id: str | None = None) -> Steps[UpdateList]:
    """Compare all models, or one, with the hub: branches that moved, newer tags."""
    params = given(model_id=model_id)
    return ask("GET", "/api/v1/models/outdated", UpdateList, params=params, timeout=None)


def upgrade(
    model_id: str,
    version: str | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Steps[VersionSwitched]:
    """Install a newer version beside the current one and switch to it when it is ready.

    Args:
        version: branch, tag or commit; None takes the highest newer tag, or what the current
            version's branch points at now, as a version of its own named by the commit.
        on_progress, timeout: as for `install`.

    Returns:
        The switch; `version` equals `previous_version` when there was nothing newer.

    Raises:
        InstallFailed, WaitTimeout: as `install`; the current version serves as before.
    """
    began = time.monotonic()
    path, body = model_path(model_id, "/upgrade"), given(version=version)
    accepted = yield from ask("POST", path, UpgradeAccepted, json=body, timeout=None)
    if accepted.up_to_date:
        return VersionSwitched(
            model_id=accepted.model_id,
            version=accepted.version,
            previous_version=accepted.previous_version,
        )
    if accepted.operation is not None:
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        yield from await_installation(accepted.operation, on_progress, left)
    return (yield from use(model_id, accepted.version))


def downgrade(model_id: str, version: str) -> Steps[VersionSwitched]:
    """Switch to an installed version that is older than the current one.

    Older by number where both are semantic versions, else by the order of registration.
    """
    listing = yield from versions(model_id)
    target = yield from _version(model_id, version)
    current = next(known for known in listing.data if known.current)
    if not _older(target, current):
        raise ModelMoraApiError(
            "VALIDATION_ERROR",
            f"{target.version} is not older than {current.version}. "
            f"Switch to it with: modelmora use {listing.model_id}@{target.version}",
            status=400,
        )
    return (yield from use(model_id, target.version))


def _version(model_id: str, name: str) -> Steps[VersionInfo]:
    return version(model_id, name)


def _older(one: VersionInfo, other: VersionInfo) -> bool:
    if is_semantic(one.version) and is_semantic(other.version):
        return version_sort_key(one.version) < version_sort_key(other.version)
    return (one.triton_version or 0) < (other.triton_version or 0)
